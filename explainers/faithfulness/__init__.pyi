from ._ablation import HeadAblation as HeadAblation
from ._ablation import head_ablation as head_ablation
from ._completeness import Completeness as Completeness
from ._completeness import completeness as completeness
from ._deletion import Deletion as Deletion
from ._deletion import deletion as deletion
from ._randomisation import LabelRandomisation as LabelRandomisation
from ._randomisation import ParameterRandomisation as ParameterRandomisation
from ._randomisation import label_randomisation as label_randomisation
from ._randomisation import parameter_randomisation as parameter_randomisation
from ._stability import SeedAgreement as SeedAgreement
from ._stability import Sensitivity as Sensitivity
from ._stability import seed_agreement as seed_agreement
from ._stability import sensitivity as sensitivity

__all__ = [
    "Completeness",
    "Deletion",
    "HeadAblation",
    "LabelRandomisation",
    "ParameterRandomisation",
    "SeedAgreement",
    "Sensitivity",
    "completeness",
    "deletion",
    "head_ablation",
    "label_randomisation",
    "parameter_randomisation",
    "seed_agreement",
    "sensitivity",
]
