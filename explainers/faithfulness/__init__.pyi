from ._ablation import HeadAblation as HeadAblation
from ._ablation import head_ablation as head_ablation
from ._attention_deletion import AttentionDeletion as AttentionDeletion
from ._attention_deletion import attention_deletion as attention_deletion
from ._completeness import Completeness as Completeness
from ._completeness import completeness as completeness
from ._deletion import Deletion as Deletion
from ._deletion import deletion as deletion
from ._randomisation import LabelRandomisation as LabelRandomisation
from ._randomisation import ParameterRandomisation as ParameterRandomisation
from ._randomisation import label_randomisation as label_randomisation
from ._randomisation import parameter_randomisation as parameter_randomisation
from ._removal import Removal as Removal
from ._removal import removal as removal
from ._stability import SeedAgreement as SeedAgreement
from ._stability import Sensitivity as Sensitivity
from ._stability import seed_agreement as seed_agreement
from ._stability import sensitivity as sensitivity
from .controls import Twins as Twins
from .controls import twins as twins

__all__ = [
    "AttentionDeletion",
    "Completeness",
    "Deletion",
    "HeadAblation",
    "LabelRandomisation",
    "ParameterRandomisation",
    "Removal",
    "SeedAgreement",
    "Sensitivity",
    "Twins",
    "attention_deletion",
    "completeness",
    "deletion",
    "head_ablation",
    "label_randomisation",
    "parameter_randomisation",
    "removal",
    "seed_agreement",
    "sensitivity",
    "twins",
]
