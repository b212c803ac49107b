"""FlowJo workspaces and Gating-ML files of the kinds that laboratories have, made on the spot."""

from __future__ import annotations

from pathlib import Path
from xml.sax.saxutils import quoteattr

import numpy as np

from tests.fcs_files import write_floats

GATING = "http://www.isac-net.org/std/Gating-ML/v2.0"
SPACES = (
    f'xmlns:gating="{GATING}/gating" xmlns:transforms="{GATING}/transformations" '
    f'xmlns:data-type="{GATING}/datatypes"'
)
CHANNELS = ["FSC-A", "SSC-A", "FITC-A", "PE-A", "Time"]
# Signal of the row in the detector of the column, as in the files.
SPILL = ((1.0, 0.2), (0.05, 1.0))
LOGICLE = '<transforms:logicle transforms:length="256" transforms:T="262144" transforms:A="0" transforms:W="0.5" transforms:M="4.5">'  # fmt: skip # noqa: E501


def write_file(path: Path, *, names=CHANNELS, seed=0, n=500, **keywords) -> Path:
    """FCS file of floats with a spillover matrix and ticks of 0.1 s."""
    rng = np.random.default_rng(seed)
    signal = np.exp(rng.normal(7.5, 1.5, size=(n, 2)))
    stained = signal @ np.array(SPILL) + rng.normal(0, 100, size=(n, 2))
    scatter = rng.uniform(1000, 260000, size=(n, 2))
    time = np.sort(rng.integers(0, 600, size=(n, 1)), axis=0)
    values = np.hstack([scatter, stained, time])
    matrix = ",".join(["2", names[2], names[3], *(str(v) for row in SPILL for v in row)])
    ranges = {f"P{i}R": "262144" for i in range(1, 6)}
    text = {"SPILLOVER": matrix, "TIMESTEP": "0.1", **ranges, **keywords}
    return write_floats(path, values, names, **text)


def attributes(**values: object) -> str:
    return " ".join(f"{k}={quoteattr(str(v))}" for k, v in values.items())


def scale(kind: str, name: str) -> str:
    """Scale of a channel in a workspace."""
    head = {
        "linear": '<transforms:linear transforms:minRange="0" transforms:maxRange="262144">',
        "from -100": '<transforms:linear transforms:minRange="-100" transforms:maxRange="262144">',
        "logicle": LOGICLE,
        "log": '<transforms:log transforms:offset="1" transforms:decades="5.4">',
        "biex": '<transforms:biex transforms:length="256" transforms:maxRange="262144" '
        'transforms:neg="0" transforms:width="-100" transforms:pos="4.418539922">',
        "width 0": '<transforms:biex transforms:length="256" transforms:maxRange="262144" '
        'transforms:neg="0" transforms:width="0" transforms:pos="4.418539922">',
        "4096": '<transforms:biex transforms:length="4096" transforms:maxRange="262144" '
        'transforms:neg="0" transforms:width="-10" transforms:pos="4.418539922">',
        "miltenyi": '<transforms:miltenyi transforms:T="262144">',
        "hyperlog": '<transforms:hyperlog transforms:T="262144" transforms:W="0.5">',
    }[kind]
    end = head.split()[0].lstrip("<")
    return f'{head}<data-type:parameter data-type:name="{name}"/></{end}>'


def matrix(values=SPILL, *, name="Acquisition-defined", prefix="Comp-", rows=None, **more) -> str:
    """Matrix of a sample."""
    detectors = CHANNELS[2:4]
    rows = rows or detectors
    parameters = "".join(f'<data-type:parameter data-type:name="{d}"/>' for d in rows)
    coefficients = "".join(
        f'<transforms:spillover data-type:parameter="{row}">'
        + "".join(
            f'<transforms:coefficient data-type:parameter="{d}" transforms:value="{v!r}"/>'
            for d, v in zip(detectors, line, strict=True)
        )
        + "</transforms:spillover>"
        for row, line in zip(rows, values, strict=True)
    )
    given = attributes(name=name, prefix=prefix, suffix="", **{"spectral": "0"} | more)
    return (
        f"<transforms:spilloverMatrix {given}><data-type:parameters>{parameters}"
        f"</data-type:parameters>{coefficients}</transforms:spilloverMatrix>"
    )


def axes(**limits) -> str:
    """Dimensions of a gate: channel (with "_" for "-") -> None, (low, high)."""
    found = ""
    for name, ends in limits.items():
        ends = ends or (None, None)
        sides = zip(("min", "max"), ends, strict=True)
        text = " ".join(f'gating:{side}="{v}"' for side, v in sides if v is not None)
        found += (
            f"<gating:dimension {text}><data-type:fcs-dimension data-type:name={quoteattr(name)}/>"
            "</gating:dimension>"
        )
    return found


def vertex(*values: float) -> str:
    points = "".join(f'<gating:coordinate data-type:value="{v!r}"/>' for v in values)
    return f"<gating:vertex>{points}</gating:vertex>"


def box(inside=1, **limits) -> str:
    return f'<gating:RectangleGate eventsInside="{inside}">{axes(**limits)}</gating:RectangleGate>'


def outline(x: str, y: str, points, inside=1) -> str:
    vertices = "".join(vertex(*map(float, point)) for point in points)
    dimensions = axes(**{x: None, y: None})
    return (
        f'<gating:PolygonGate eventsInside="{inside}">{dimensions}{vertices}</gating:PolygonGate>'
    )


def ellipse(x: str, y: str, foci, edge) -> str:
    def group(name, points):
        inside = "".join(vertex(*map(float, p)) for p in points)
        return f"<gating:{name}>{inside}</gating:{name}>"

    shape = axes(**{x: None, y: None}) + group("foci", foci) + group("edge", edge)
    return f'<gating:EllipsoidGate gating:distance="1">{shape}</gating:EllipsoidGate>'


def population(name: str, shape: str, *below: str) -> str:
    inside = f"<Subpopulations>{''.join(below)}</Subpopulations>" if below else ""
    head = attributes(name=name, owningGroup="")
    return f"<Population {head}><Gate>{shape}</Gate>{inside}</Population>"


def boolean(kind: str, name: str, *operands: str) -> str:
    listed = "".join(f"<Dependent {attributes(name=o)}/>" for o in operands)
    head = attributes(name=name, owningGroup="")
    return f"<{kind}Node {head}><Dependents>{listed}</Dependents></{kind}Node>"


def sample(
    name: str,
    *populations: str,
    number=1,
    uri=None,
    fil=None,
    matrices=None,
    scales=None,
) -> str:
    """Sample of a workspace; ``scales`` gives other channels than the defaults theirs."""
    plain = {"FSC-A": "linear", "SSC-A": "linear"}
    stained = {c: "logicle" for d in ("FITC-A", "PE-A") for c in (d, f"Comp-{d}")}
    transforms = "".join(scale(k, c) for c, k in (plain | stained | (scales or {})).items())
    keyword = "" if fil is None else f"<Keyword {attributes(name='$FIL', value=fil)}/>"
    return (
        f"<Sample><DataSet {attributes(uri=uri or f'file:/d/{name}', sampleID=number)}/>"
        f"{matrix() if matrices is None else ''.join(matrices)}"
        f"<Transformations>{transforms}</Transformations><Keywords>{keyword}</Keywords>"
        f"<SampleNode {attributes(name=name, sampleID=number, owningGroup='')}>"
        f"<Subpopulations>{''.join(populations)}</Subpopulations></SampleNode></Sample>"
    )


def write_workspace(path: Path, *samples: str, groups=True) -> Path:
    numbers = range(1, len(samples) + 1)
    references = "".join(f'<SampleRef sampleID="{n}"/>' for n in numbers)
    group = (
        '<Groups><GroupNode name="All Samples" owningGroup="All Samples"><Group name="All Samples">'
        f"<SampleRefs>{references}</SampleRefs></Group></GroupNode></Groups>"
    )
    path.write_text(
        f'<?xml version="1.0" encoding="UTF-8"?>\n<Workspace version="20.0" '
        f'flowJoVersion="10.8.1" {SPACES}>{group if groups else ""}'
        f"<SampleList>{''.join(samples)}</SampleList></Workspace>",
        encoding="utf-8",
    )
    return path


def write_gatingml(path: Path, content: str) -> Path:
    path.write_text(
        f'<?xml version="1.0"?>\n<gating:Gating-ML {SPACES}>{content}</gating:Gating-ML>'
    )
    return path
