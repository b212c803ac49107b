"""What the name of a parameter says about it: its kind, its stain, whether it is compensated.

Names are matched as a whole, never in part: "Width" is no marker, "CD-W" is one.
"""

from __future__ import annotations

import re

# FlowJo writes "Comp-X" or "FJComp-X", FACSDiva and old FlowJo "<X>".
_COMPENSATED = re.compile(r"(?:fj)?comp[-_](?P<plain>.+)|<(?P<inside>[^<>]+)>", re.IGNORECASE)
# A cell sorter puts the laser before the name: "*[488] SSC".
_LASER = re.compile(r"\*?\[\d{3,4}\]\s*|\d{3}(?:\s?nm)?[ _-](?=[fsb]sc\b)", re.IGNORECASE)

_TIME = re.compile(
    r"time(?:[ _-].*|\d)?|time ?stamp|(?:event|acquisition|acq|elapsed)[ _-]?time"
    r"|hdr-tm?|clock|clk",
    re.IGNORECASE,
)

# "(?![a-z])": "FSC1-A" and "SS INT" are scatter, "FSPE" and "SSEA-4" are not.
_SCATTER = re.compile(
    r"(?:(?:violet|blue|red|green|yellow|uv|ir|yg|[vbrgy])?[ _-]?[fsb]sc|[fs]s)(?![a-z]).*"
    r"|(?:forward|side|back|low|high|small|medium|large|wide)[ _-]?(?:angle[ _-]?)?"
    r"(?:light[ _-]?)?scatter.*"
    r"|light[ _-]?scatter.*|(?:axial[ _-]?)?light[ _-]?loss(?![a-z]).*"
    r"|(?:[sml]als|[fr]als|fals)(?![a-z]).*|extinction",
    re.IGNORECASE,
)

# Parameters that no instrument would name an antigen.
_BOOKKEEPING = [
    # Event_length, event counters, pulse width
    r"(?:event|cell)[ _-]?length|length",
    r"events?(?:[ _.-]*(?:#|number|no|num|nr|count(?:er)?|id|index)(?:[ _-]?dp)?)?",
    r"(?:trigger[ _-]?)?(?:pulse[ _-]?)?width|pulse[ _-]?count",
    r"tof|time[ _-]of[ _-]flight",
    r"counter|count|row(?:[ _-]?(?:id|names?|number))?|index|id|unnamed:? ?\d*|original[ _-]?id",
    r"(?:cell|object|particle)[ _-]?(?:id|index|no|num|nr|number|label|type)",
    # Gaussian parameters and beads of mass cytometers
    r"center|offset|residual|amplitude|(?:dna[ _-]?)?residual",
    r"beads?|beads?[ _-]?(?:dist(?:ance)?|norm\w*|id)|dist(?:ance)?[ _-]?to[ _-]?beads?",
    # where the cells come from
    r"(?:file|sample|batch|plate|well|tube|donor|patient|subject|individual|specimen|group"
    r"|condition|source|population|subset|gate|class|label|barcode)"
    r"(?:[ _.-]*(?:id|number|no|num|nr|name|index|origin|code))?",
    # MACSQuant counters and volume, iCyt, CyFlow
    r"hdr-.*|ev|electronic[ _-]?volume|volume|doublets?|singlets?|flow[ _-]?rate",
    r"(?:sample|sheath)[ _-]?(?:pressure|flow|volume)|pressure|temperature|flow[ _-]?speed",
    r"aborts?|lost|flags?|status|saturat(?:ed|ion)|baseline",
    # sorters
    r"sort|sorted|sort[ _-].*|drop[ _-]?(?:phase|delay|charge|number)|index[ _-]?sort.*",
    r"(?:\w+ )*bits(?: \d+(?:-\d+)?)?|(?:tray|plate|well|idx|index)[ _-]?(?:x|y|col(?:umn)?|row)",
    r"tray",
    # positions and features of images
    r"[xyz]|[xyz][ _-]?(?:pos(?:ition)?|coord(?:inate)?s?|cent(?:er|re|roid))",
    r"roi|image[ _-]?(?:id|no)|velocity",
    r"(?:delta[ _-]?|raw[ _-]?)?(?:cent(?:er|re)[ _-]of[ _-]mass|centroid).*",
    r"(?:eccentricity|circularity|compactness|elongatedness|diffusivity|perimeter|solidity"
    r"|convexity|roundness|aspect[ _-]?ratio|gradient[ _-](?:rms|max)|focus|(?:mean )?radius"
    r"|(?:(?:short|long|minor|major)[ _-]axis|radial)[ _-]?(?:moment|length|intensity)?"
    r"|moment|(?:pixel )?correlation|similarity|(?:raw )?(?:max|min|mean|median) pixel"
    r"|(?:max|total)[ _-]intensity|contrast|modulation|(?:h )?(?:entropy|texture)"
    r"|spot (?:count|area)|bright detail.*|symmetry|lobe count|equivalent diameter|diameter)"
    r"(?![a-z]).*",
    r"(?:area|size|height|length|thickness|width)(?:[ _]m\d+.*|[ _-]?\((?!.*cd).*\)(?:-[ahw])?)",
    r"size",
    r"img[._ ].*|imaging[ _-].*",
    # embeddings and clusters that other programs write
    r"(?:comp-)?(?:(?:opt|fit|bh|hyper|fi?t|h)?[ _-]?t?-?sne|visne|n?umap|phate|trimap|pacmap"
    r"|embedsom|ivis|isomap|diff(?:usion)?[ _-]?map|force[ _-]?directed|fdl|largevis)(?![a-z]).*",
    r"pc_\d+|pc[ -]?[123]|pca(?![a-z]).*|mds[ _-]?\d+|(?:diffusion|principal)[ _-]component.*",
    r"(?:flow-?som|(?:r-?)?pheno-?graph|x-?shift|leiden|louvain|clusterx|cluster[ _-]?explorer"
    r"|(?:meta[ _-]?)?clust(?:er)?s?|k-?means|spade|citrus|dens-?vm|depeche|som|fsom|peacoqc"
    r"|flow-?ai|flow-?clean|flow-?cut|wishbone|pseudo-?time|trajectory|hdbscan|dbscan)(?![a-z]).*",
    r"good ?(?:vs ?bad|events)|bad ?events|qc|density|(?:cell|event)[ _-]?(?:types?|density)",
]
_OTHER = re.compile("|".join(f"(?:{part})" for part in _BOOKKEEPING), re.IGNORECASE)
# Words that are bookkeeping as $PnN but could be somebody's name of a stain as $PnS.
_SHORT = re.compile(
    r"[xyz]|ev|id|qc|sort|sorted|size|index|label|class|source|length|width|tray|count|lost|tof"
    r"|density|amplitude|som|group|gate|well|tube|baseline|contrast|focus|moment|barcode",
    re.IGNORECASE,
)

# $PnTYPE of FCS 3.2.
_TYPES = {
    "forward scatter": "scatter",
    "side scatter": "scatter",
    "raw fluorescence": "fluorescence",
    "unmixed fluorescence": "fluorescence",
    "mass": "mass",
    "time": "time",
    "index": "other",
    "classification": "other",
    "electronic volume": "other",
}

# Masses of the isotopes of each element that mass cytometers report, lowest and highest.
_MASSES = {
    "Ar": (80, 80), "Y": (89, 89), "Zr": (90, 96), "Nb": (93, 93), "Mo": (92, 100),
    "Ru": (96, 104), "Rh": (103, 103), "Pd": (102, 110), "Ag": (107, 109), "Cd": (106, 116),
    "In": (113, 115), "Sn": (112, 124), "Te": (120, 130), "I": (127, 127), "Xe": (124, 136),
    "Cs": (133, 133), "Ba": (130, 138), "La": (138, 139), "Ce": (136, 142), "Pr": (141, 141),
    "Nd": (142, 150), "Sm": (144, 154), "Eu": (151, 153), "Gd": (152, 160), "Tb": (159, 159),
    "Dy": (156, 164), "Ho": (165, 165), "Er": (162, 170), "Tm": (169, 169), "Yb": (168, 176),
    "Lu": (175, 176), "Hf": (174, 180), "Ta": (180, 181), "W": (180, 186), "Re": (185, 187),
    "Os": (184, 192), "Ir": (191, 193), "Pt": (190, 198), "Au": (197, 197), "Hg": (196, 204),
    "Tl": (203, 205), "Pb": (204, 208), "Bi": (209, 209), "BCKG": (190, 190),
}  # fmt: skip
# "Er168Di", "(Nd142)Dd", "CD45RA(La139)Di", "CD3(Er170Di)": dual counts of an isotope.
_DUAL = re.compile(r"(?:.*[(_ -])?\(?[A-Za-z]{1,4}\d{2,3}\)?D[id]\)?")
_ISOTOPE = re.compile(
    r"(?:.*[(_ -])?(?:(?P<mass>\d{2,3})-?(?P<element>[A-Z][a-z]?)|"
    r"(?P<symbol>[A-Z][a-z]?)-?(?P<number>\d{2,3}))(?:\)|[_ -].*)?"
)

_PULSE = re.compile(
    r"(?P<stem>.+)[ _-](?P<pulse>a|h|w|area|height|width|int|peak|tof|[ahw]l(?:in|og)|lin|log)",
    re.IGNORECASE,
)
# Detectors of spectral instruments: "UV1-A", "YG10-A", "405CH12-A", "CH7-A".
_DETECTOR = re.compile(
    r"(?P<laser>uv|yg|v|b|r|y|g|ir|\d{3} ?ch|ch)-?(?P<number>\d{1,2})(?: ?\(\d{3}\))?",
    re.IGNORECASE,
)
_AUTOFLUORESCENCE = re.compile(
    r"af(?:[ _-]?\d{1,2})?|auto[ _-]?fluo(?:rescence|r)?(?:[ _-]?\w{1,3})?"
    r"|af[ _-](?:signature|spectrum|tag)(?:[ _-]?\d+)?",
    re.IGNORECASE,
)
_BEADS = re.compile(r"(?:.*[ _-])?(?:eq\d?[ _-]?)?beads?\d*(?:[ _-].*)?", re.IGNORECASE)


def plain_channel(name: str) -> str:
    """Name of a channel without the mark of compensated values.

    Examples
    --------
    >>> from fcm_estimators.io.kinds import plain_channel
    >>> plain_channel("FJComp-FITC-A"), plain_channel("<PE-A>"), plain_channel("APC-A")
    ('FITC-A', 'PE-A', 'APC-A')
    """
    found = _COMPENSATED.fullmatch(name.strip())
    return (found["plain"] or found["inside"]) if found else name.strip()


def is_compensated(name: str) -> bool:
    """Whether the name of a channel says that its values are compensated.

    Examples
    --------
    >>> from fcm_estimators.io.kinds import is_compensated
    >>> [is_compensated(n) for n in ("Comp-FITC-A", "FJComp-PE-A", "<APC-A>", "FITC-A")]
    [True, True, True, False]
    """
    return _COMPENSATED.fullmatch(name.strip()) is not None


def kind_of_type(type_name: str) -> str | None:
    """Kind of a parameter by its ``$PnTYPE`` (FCS 3.2); None if it is absent or unknown."""
    return _TYPES.get(re.sub(r"[ _-]+", " ", type_name.strip().lower()))


def kind_of_name(name: str, *, is_marker: bool = False) -> str | None:
    """Kind of a parameter by its name.

    Parameters
    ----------
    name : str
        A ``$PnN`` name, or a ``$PnS`` name.
    is_marker : bool, default False
        The name is a ``$PnS``, which people choose: short words tell nothing.

    Returns
    -------
    {"time", "scatter", "mass", "other"} or None
        None: nothing speaks against a stain.

    Examples
    --------
    >>> from fcm_estimators.io.kinds import kind_of_name
    >>> [kind_of_name(name) for name in ("HDR-TM", "[488] FSC Par", "UMAP_1", "Ki-67")]
    ['time', 'scatter', 'other', None]
    """
    bare = plain_channel(name)
    bare = _LASER.sub("", bare, count=1).strip() or bare
    if is_mass(bare):
        return "mass"
    if _TIME.fullmatch(bare):
        return "time"
    if _OTHER.fullmatch(bare) and not (is_marker and _SHORT.fullmatch(bare)):
        return "other"
    return "scatter" if _SCATTER.fullmatch(bare) else None


def is_mass(name: str, *, among_mass: bool = False) -> bool:
    """Whether a name is that of an isotope, as mass cytometers write it.

    "Cd112" could be meant as the antigen CD112, so it counts only in a file that has other
    isotopes (``among_mass``).
    """
    if _DUAL.fullmatch(name):
        return True
    found = _ISOTOPE.fullmatch(name)
    if not found:
        return False
    element = found["element"] or found["symbol"]
    first = found["mass"] is not None
    if not (first or among_mass) and element in ("Cd", "I", "In", "W", "Y"):
        return False
    low, high = _MASSES.get(element, (1, 0))
    return low <= int(found["mass"] or found["number"]) <= high


def only_isotope(marker: str) -> bool:
    """Whether a ``$PnS`` names an isotope and no antigen: "170Er", "Er170Di"."""
    return bool(re.fullmatch(r"\(?(\d{2,3}-?[A-Z][a-z]?|[A-Z][a-z]?\d{2,3})\)?(D[id])?", marker))


def stem_and_pulse(channel: str) -> tuple[str, str]:
    """Detector or stain of a channel, and which measure of the pulse it is: "A", "H", "W" or "".

    Examples
    --------
    >>> from fcm_estimators.io.kinds import stem_and_pulse
    >>> stem_and_pulse("Comp-PE-Cy7-A"), stem_and_pulse("FL1 PEAK"), stem_and_pulse("FL2")
    (('pe-cy7', 'A'), ('fl1', 'H'), ('fl2', ''))
    """
    bare = plain_channel(channel)
    found = _PULSE.fullmatch(bare)
    if not found:
        return bare.lower(), ""
    pulse = found["pulse"].lower()
    words = {"int": "A", "peak": "H", "tof": "W", "lin": "", "log": ""}
    return found["stem"].lower(), words.get(pulse, pulse[0].upper())


def is_detector(channel: str) -> bool:
    """Whether a channel is named by laser and number, as raw spectral detectors are."""
    return _DETECTOR.fullmatch(stem_and_pulse(channel)[0]) is not None


def is_spectral(channels: list[str]) -> bool:
    """Whether detectors are those of a spectral instrument rather than of some twenty colours.

    Conventional instruments name detectors alike ("V1-A"), but have at most eight at a laser, and
    none of the lasers "UV", "YG" and "405CH".
    """
    found = [_DETECTOR.fullmatch(stem_and_pulse(channel)[0]) for channel in channels]
    return any(
        f is not None and (f["laser"].lower() in ("uv", "yg") or "ch" in f["laser"].lower()
                           or int(f["number"]) > 8)
        for f in found
    )  # fmt: skip


def is_autofluorescence(name: str) -> bool:
    """Whether a channel or marker is autofluorescence; "AF488" is a dye."""
    return _AUTOFLUORESCENCE.fullmatch(stem_and_pulse(name)[0]) is not None


def is_bead(name: str) -> bool:
    """Whether a channel or marker of a mass cytometer is that of normalisation beads."""
    return _BEADS.fullmatch(name) is not None
