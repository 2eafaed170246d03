"""Small ONNX files that speak the interfaces of InsightFace's SCRFD detector and ArcFace
recogniser.

They are no face models. "coloured_discs" finds magenta discs, so tests can draw "faces" of any
size; "centre" sees one face in the middle of every picture, for demonstrations with photographs
where the real pack is not installed.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

STRIDES = (8, 16, 32)


@dataclass(frozen=True)
class Form:
    """How a detector's file answers: SCRFD files differ in this."""

    strides: tuple[int, ...] = STRIDES
    boxes_per_cell: int = 2
    batched: bool = False  # a dimension of one batch before the others
    size: int | None = None  # of the input, where the file has only one


FORMS = {
    "plain": Form(),
    "batched": Form(batched=True),
    "one_size": Form(size=320),
    "five_levels": Form(strides=(8, 16, 32, 64, 128), boxes_per_cell=1),
}
# eyes, nose, mouth corners from the middle of the face, in units of its radius
LANDMARKS = ((-0.40, -0.30), (0.40, -0.30), (0.00, 0.05), (-0.35, 0.45), (0.35, 0.45))


class Graph:
    """Collects nodes and constants; every method returns the name of a tensor."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def constant(self, value: object, dtype: type = np.float32) -> str:
        name = f"constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(value, dtype=dtype), name))
        return name

    def op(
        self, kind: str, *inputs: str, output: str = "", name: str = "", **attributes: object
    ) -> str:
        output = output or f"tensor_{len(self.nodes)}"
        name = name or f"node_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [output], name=name, **attributes))
        return output

    def save(
        self, path: Path, shape: tuple[object, ...], outputs: list[tuple[str, tuple[object, ...]]]
    ) -> None:
        declared = [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, size) for name, size in outputs
        ]
        image = helper.make_tensor_value_info("image", TensorProto.FLOAT, shape)
        graph = helper.make_graph(self.nodes, path.stem, [image], declared, self.constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        onnx.checker.check_model(model)
        onnx.save(model, str(path))


def write_model_pack(
    root: Path,
    name: str = "stand_in",
    detector: str = "coloured_discs",
    form: str = "plain",
    scales_itself: bool = False,
) -> Path:
    """Writes <root>/models/<name>/det_stand_in.onnx and rec_stand_in.onnx; returns that folder.

    form           of the coloured discs' detector: a key of FORMS
    scales_itself  the recogniser subtracts and multiplies in its own graph
    """
    folder = Path(root) / "models" / name
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "det_stand_in.onnx"
    if detector == "coloured_discs":
        _coloured_discs(path, FORMS[form])
    elif detector == "centre":
        _centre(path)
    else:
        raise ValueError(f"Unknown stand-in detector {detector!r}; coloured_discs or centre.")
    _recogniser(folder / "rec_stand_in.onnx", scales_itself)
    return folder


def _save_detector(
    graph: Graph,
    path: Path,
    scores: list[str],
    boxes: list[str],
    points: list[str],
    form: Form = FORMS["plain"],
) -> None:
    batch = (1,) if form.batched else ()
    outputs = []
    for names, width in ((scores, 1), (boxes, 4), (points, 10)):
        outputs += [(name, (*batch, f"cells_{name}", width)) for name in names]
    size = (form.size, form.size) if form.size else ("height", "width")
    graph.save(path, (1, 3, *size), outputs)


def _coloured_discs(path: Path, form: Form) -> None:
    """A cell fires where the cells around it are magenta and those a little further out are not."""
    graph = Graph()
    magenta = _magenta(graph)
    heads = [_disc_head(graph, magenta, stride, form) for stride in form.strides]
    _save_detector(graph, path, *(list(column) for column in zip(*heads, strict=True)), form)


def _magenta(graph: Graph) -> str:
    """[1 1 H W]: 1 where a pixel is saturated magenta, 0 where it is grey."""
    weights = graph.constant(np.array([0.25, -0.5, 0.25]).reshape(1, 3, 1, 1))
    return graph.op(
        "Clip", graph.op("Conv", "image", weights), graph.constant(0.0), graph.constant(1.0)
    )


def _disc_head(graph: Graph, magenta: str, stride: int, form: Form) -> tuple[str, str, str]:
    cells = graph.op(
        "AveragePool", magenta, kernel_shape=[stride, stride], strides=[stride, stride]
    )
    area, middle = _moments(graph, cells)
    radius = graph.op("Sqrt", graph.op("Mul", area, graph.constant(1 / np.pi)))
    return (
        _rows(graph, _disc_score(graph, cells, middle), 1, f"score_{stride}", form),
        _rows(graph, _box_distances(graph, radius, middle), 4, f"box_{stride}", form),
        _rows(graph, _landmark_offsets(graph, radius, middle), 10, f"points_{stride}", form),
    )


def _moments(graph: Graph, cells: str) -> tuple[str, str]:
    """[1 1 h w] how many of the 9 x 9 cells around are magenta, and [1 2 h w] where their middle is
    (x, y).
    """
    ramp = np.tile(np.arange(-4.0, 5.0), (9, 1))
    sums = graph.op("Conv", cells, graph.constant(np.stack([ramp, ramp.T])[:, None]), pads=[4] * 4)
    area = graph.op("Conv", cells, graph.constant(np.ones((1, 1, 9, 9))), pads=[4] * 4)
    return area, graph.op("Div", sums, graph.op("Max", area, graph.constant(1e-3)))


def _disc_score(graph: Graph, cells: str, middle: str) -> str:
    """High where the near cells are magenta, the further ones are not, and the disc's middle is
    here.
    """
    contrast = graph.op("Sub", _mean_around(graph, cells, 5), _mean_around(graph, cells, 9))
    distance = graph.op("ReduceSumSquare", middle, axes=[1], keepdims=1)
    score = graph.op("Mul", contrast, graph.constant(2.2))
    score = graph.op("Sub", score, graph.op("Mul", distance, graph.constant(0.3)))
    return graph.op("Clip", score, graph.constant(0.0), graph.constant(0.99))


def _mean_around(graph: Graph, cells: str, width: int) -> str:
    """Mean over width x width cells; cells outside the picture do not count."""
    return graph.op("AveragePool", cells, kernel_shape=[width, width], pads=[width // 2] * 4)


def _box_distances(graph: Graph, radius: str, middle: str) -> str:
    """Left, top, right, bottom.

    SCRFD counts from the cell's top left corner, half a cell from its middle.
    """
    corner = graph.op("Add", middle, graph.constant(0.5))
    sides = graph.op("Concat", graph.op("Neg", corner), corner, axis=1)
    return graph.op("Add", sides, radius)


def _landmark_offsets(graph: Graph, radius: str, middle: str) -> str:
    directions = graph.constant(np.array(LANDMARKS).reshape(1, 10, 1, 1))
    corner = graph.op("Add", middle, graph.constant(0.5))
    return graph.op(
        "Add", graph.op("Mul", radius, directions), graph.op("Concat", *[corner] * 5, axis=1)
    )


def _rows(graph: Graph, values: str, channels: int, output: str, form: Form) -> str:
    """[1 C h w] -> [h*w*n C]: a row for each of the n boxes of a cell; all say the same here."""
    every = graph.op("Concat", *[values] * form.boxes_per_cell, axis=1)
    last = graph.op("Transpose", every, perm=[0, 2, 3, 1])
    shape = [*([1] if form.batched else []), -1, channels]
    return graph.op("Reshape", last, graph.constant(shape, np.int64), output=output)


def _centre(path: Path) -> None:
    """One face in the middle of the picture.

    Width and height are where the detector's input is not black padding.
    """
    graph = Graph()
    size = _content_size(graph)
    middle = graph.op("Mul", size, graph.constant([[0.5, 0.42]]))
    shorter = graph.op("ReduceMin", size, axes=[1], keepdims=1)
    radius = graph.op("Mul", shorter, graph.constant(0.22))
    heads = [_middle_head(graph, middle, radius, stride) for stride in STRIDES]
    _save_detector(graph, path, *(list(column) for column in zip(*heads, strict=True)))


def _content_size(graph: Graph) -> str:
    """[1 2]: width and height of what is not black, in pixels of the detector's input."""
    sizes = []
    for other_axis in (2, 3):
        brightest = graph.op("ReduceMax", "image", axes=[1, other_axis], keepdims=0)
        lit = graph.op(
            "Cast", graph.op("Greater", brightest, graph.constant(-0.97)), to=TensorProto.FLOAT
        )
        sizes.append(graph.op("ReduceSum", lit, graph.constant([1], np.int64), keepdims=1))
    return graph.op("Concat", *sizes, axis=1)


def _middle_head(graph: Graph, middle: str, radius: str, stride: int) -> tuple[str, str, str]:
    """Every cell tells the same box, counted from the first cell.

    Only the first cell of the coarsest stride fires.
    """
    count = _cell_count(graph, stride)
    scale = graph.constant(1 / stride)
    middle = graph.op("Mul", middle, scale)
    radius = graph.op("Mul", radius, scale)
    sides = graph.op("Concat", graph.op("Neg", middle), middle, axis=1)
    box = graph.op("Add", sides, radius)
    points = graph.op(
        "Add",
        graph.op("Mul", radius, graph.constant(np.array(LANDMARKS).reshape(1, 10))),
        graph.op("Concat", *[middle] * 5, axis=1),
    )
    return (
        _first_cell(graph, count, 0.9 if stride == STRIDES[-1] else 0.0, f"score_{stride}"),
        _repeat(graph, box, count, 4, f"box_{stride}"),
        _repeat(graph, points, count, 10, f"points_{stride}"),
    )


def _cell_count(graph: Graph, stride: int) -> str:
    """[1]: twice the number of stride x stride cells."""
    size = graph.op(
        "Slice",
        graph.op("Shape", "image"),
        graph.constant([2], np.int64),
        graph.constant([4], np.int64),
    )
    cells = graph.op(
        "ReduceProd", graph.op("Div", size, graph.constant([stride, stride], np.int64)), axes=[0]
    )
    return graph.op("Mul", cells, graph.constant([2], np.int64))


def _first_cell(graph: Graph, count: str, score: float, output: str) -> str:
    """[count 1]: the score in the first row, 0 in the others."""
    rest = graph.op("Sub", count, graph.constant([1], np.int64))
    rows = graph.op("Concat", rest, graph.constant([1], np.int64), axis=0)
    zeros = graph.op("Expand", graph.constant([[0.0]]), rows)
    return graph.op("Concat", graph.constant([[score]]), zeros, output=output, axis=0)


def _repeat(graph: Graph, row: str, count: str, width: int, output: str) -> str:
    shape = graph.op("Concat", count, graph.constant([width], np.int64), axis=0)
    return graph.op("Expand", row, shape, output=output)


def _recogniser(path: Path, scales_itself: bool) -> None:
    """Mean colours of 7 x 7 fields, through a fixed random projection to 512 numbers."""
    graph = Graph()
    image = "image"
    if scales_itself:
        image = graph.op("Sub", image, graph.constant(127.5), name="_minusscalar0")
        image = graph.op("Mul", image, graph.constant(1 / 128), name="_mulscalar0")
    fields = graph.op("AveragePool", image, kernel_shape=[16, 16], strides=[16, 16])
    flat = graph.op("Flatten", fields)
    projection = np.random.RandomState(512).standard_normal((147, 512))
    weights = graph.op("Cast", graph.constant(projection, np.float16), to=TensorProto.FLOAT)
    graph.op("MatMul", flat, weights, output="embedding")
    graph.save(path, ("faces", 3, 112, 112), [("embedding", ("faces", 512))])
