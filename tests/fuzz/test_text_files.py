"""Mutated recipes, reports and ONNX files: each is read, or refused with a `QgaitError`."""

import io
import json
import random

import numpy as np
import onnx
import pytest
import torch
from rich.console import Console

import qgait_ptq as qg
from qgait_ptq.cli.verify import examine
from qgait_ptq.config.recipes import parse, read_recipe, recipe_yaml
from qgait_ptq.config.schema import IdcConfig, Recipe
from qgait_ptq.config.yaml_reading import load_yaml
from qgait_ptq.exporters.onnx_file import read_model
from qgait_ptq.gait.opengait.configuration import read_opengait_config
from qgait_ptq.reference.pair_sums import bound_pair_sums
from qgait_ptq.report.comparing import compare_reports, short_names
from qgait_ptq.report.reading import read_report
from qgait_ptq.report.runtime_tables import comparison_of_results
from qgait_ptq.runtime.written_file import refuse_damage
from qgait_ptq.targets.registry import TARGETS
from qgait_ptq.targets.rules import find_broken_rules
from tests.conftest import make_gaitbase
from tests.fuzz.mutate import INTEGERS, mutate, run_fuzz
from tests.report.test_reading import REPORT, VALUES, places
from tests.runtime.small_model import SEQUENCE, SIZE, small_model

MANY = 10_000
FRAME = (32, 22)

RECIPES = [
    recipe_yaml(
        Recipe.model_validate(
            {
                "model": {"path": "m.pt", "factory": "a:b", "arguments": {"channels": [8, 16]}},
                "data": {"root": "data", "modality": [0, 1]},
                "quantization": {"weight_bits": 4, "layers": {"blocks.*": {"weight_bits": 8}}, "max_drop": 1},
            }
        )
    ).encode(),
    b"model: {path: 'm', arguments: {one: &one {a: 4, b: 1}, two: {<<: *one, c: 2}, three: [*one, *one]}}\n"
    b"quantization:\n  include: [a, b]\n",
    b"# text\nmodel:\n  path: m  # a date\n  sha256: 2020-01-01\n"
    b"  arguments: {a: !!int 3, b: [&x y, *x], c: ~}\n",
]
OPENGAIT = (
    b"model_cfg: {model: Baseline, channels: [1, 2]}\n"
    b"evaluator_cfg:\n  metric: euc\n  transform: [{type: BaseSilCuttingTransform, cutting: 10}]\n"
    b"  sampler: {frames_all_limit: 720, sample_type: fixed_ordered, frames_num_fixed: 30}\n"
    b"data_cfg: {test_dataset_name: CASIA-B, data_in_use: [true, false]}\n"
)


def read_whole_recipe(path):
    values = read_recipe(path)
    recipe = parse(Recipe, {"model": {"path": "m"}, **values}, str(path), path)
    text = recipe_yaml(recipe)
    assert recipe_yaml(parse(Recipe, load_yaml(text), "again")) == text


def read_whole_report(path):
    path = path.rename(path.with_name("report.json"))
    names = short_names([path.parent])
    rows = compare_reports(dict(zip(names, [read_report(path.parent)], strict=True)))
    Console(file=io.StringIO()).print(comparison_of_results(rows))


def read_whole_model(path):
    """Use a file as `Embedder`, ``verify`` and ``targets`` do."""
    torch.set_num_threads(1)  # threads of the parent are not there in a child
    for longest_piece in (30, 1):
        embedder = qg.Embedder(path, threads=1, longest_piece=longest_piece)
        frames = (
            SEQUENCE if embedder.frame_shape == SIZE else np.full((3, *embedder.frame_shape), 255, np.uint8)
        )
        embedder(frames)
    examine(path, 1, 2)


def read_graph(path):
    """Follow the graph of a file without a runtime, as ``targets`` does."""
    model = read_model(path)
    with refuse_damage(path):
        for target in TARGETS.values():
            find_broken_rules(model, target)
        bound_pair_sums(model)


class GraphMutations:
    """Changes whole fields of a model, so that it stays a valid message; takes its seed from a content."""

    def __init__(self, models):
        self.models = models

    def __call__(self, content):
        rng = random.Random(content)
        model = onnx.load_from_string(rng.choice(self.models))
        for _ in range(rng.choice((1, 1, 1, 2))):
            rng.choice((self.node, self.attribute, self.tensor, self.interface, self.metadata))(model, rng)
        return model.SerializeToString()

    def node(self, model, rng):
        """Change the operator, the inputs or the place of a node."""
        nodes = model.graph.node
        node, other = rng.choice(nodes), rng.choice(nodes)
        names = [name for one in nodes for name in (*one.input, *one.output)]
        at = rng.randrange(len(node.input)) if node.input else None
        match rng.randrange(7):
            case 0:
                node.op_type = rng.choice((other.op_type, "Relu", "Cast", "Clip", "Gather", "Loop", "Add"))
            case 1 if at is not None:
                node.input[at] = rng.choice((*names, "", "absent"))
            case 2 if at is not None:
                del node.input[at]
            case 3:
                node.input.append(rng.choice(names))
            case 4:
                nodes.remove(node)
            case 5:
                copy = onnx.NodeProto()
                copy.CopyFrom(node)
                nodes.insert(rng.randrange(len(nodes)), copy)
            case _:
                node.output[0] = rng.choice(names)

    def attribute(self, model, rng):
        """Change an attribute of a node, or remove it."""
        node = rng.choice([node for node in model.graph.node if node.attribute])
        attribute = rng.choice(node.attribute)
        number = rng.choice((*(n for n in INTEGERS if n < 2**63), -1, -2, 3, 4, 5))
        match rng.randrange(3):
            case 0 if attribute.ints:
                attribute.ints[rng.randrange(len(attribute.ints))] = number
            case 1:
                node.attribute.remove(attribute)
            case _:
                attribute.i = number

    def tensor(self, model, rng):
        """Change the shape, the type or the bytes of a stored tensor."""
        tensor = rng.choice(model.graph.initializer)
        match rng.randrange(4):
            case 0 if tensor.dims:
                tensor.dims[rng.randrange(len(tensor.dims))] = rng.choice(INTEGERS[:-1])
            case 1:
                tensor.data_type = rng.randrange(30)
            case 2:
                tensor.name = rng.choice(model.graph.initializer).name
            case _:
                data = mutate(tensor.raw_data, [tensor.raw_data or b"0"], rng)
                tensor.raw_data = data if rng.random() < 0.5 else data[: len(tensor.raw_data)]

    def interface(self, model, rng):
        """Change an input or an output of the file."""
        value = rng.choice((*model.graph.input, *model.graph.output))
        dims = value.type.tensor_type.shape.dim
        match rng.randrange(4):
            case 0 if dims:
                rng.choice(dims).dim_value = rng.choice((*INTEGERS[:-1], 3, 4, 5))
            case 1 if dims:
                dims.pop()
            case 2:
                value.type.tensor_type.elem_type = rng.randrange(20)
            case _:
                value.name = rng.choice(model.graph.node).output[0]

    def metadata(self, model, rng):
        """Change the JSON text, or a value in it."""
        text = model.metadata_props[0].value
        try:
            values = json.loads(text) if rng.random() < 0.5 else {}
        except ValueError:
            values = {}  # changed before
        if not values:
            changed = mutate(text.encode(), [b"{}"], rng).decode(errors="replace")
        else:
            *outer, key = rng.choice(list(places(values)))
            section = values
            for name in outer:
                section = section[name]
            section[key] = rng.choice(VALUES)
            changed = json.dumps(values)
        model.metadata_props[0].value = changed


@pytest.fixture(scope="module")
def models():
    """Small files: one written by hand, and one of a quantized network."""
    rng = np.random.default_rng(0)
    torch.manual_seed(0)
    pairs = [(255 * rng.integers(0, 2, (4, *FRAME), np.uint8), str(index // 2)) for index in range(4)]
    config = qg.QuantConfig(
        idc=IdcConfig(enabled=False),
        observer="minmax",
        weight_observer="minmax",
        minimum_agreement=-1,
        weight_bits=4,
    )
    network = make_gaitbase(channels=(2, 4), embedding=4)
    result = qg.quantize(network, pairs, config, device="cpu")
    return [small_model().SerializeToString(), result.onnx_model.SerializeToString()]


@pytest.mark.parametrize("tries", [300, pytest.param(MANY, marks=pytest.mark.slow)])
def test_mutated_recipes(tries):
    outcome = run_fuzz("yaml", RECIPES, read_whole_recipe, tries, seed=1)
    assert outcome.read > tries / 20
    assert len(outcome.refused) > tries / 20


@pytest.mark.parametrize("tries", [300, pytest.param(MANY, marks=pytest.mark.slow)])
def test_mutated_opengait_configurations(tries):
    outcome = run_fuzz("yaml", [OPENGAIT], read_opengait_config, tries, seed=2)
    assert outcome.read > tries / 20
    assert len(outcome.refused) > tries / 20


@pytest.mark.parametrize("tries", [300, pytest.param(MANY, marks=pytest.mark.slow)])
def test_mutated_reports(tries):
    seeds = [json.dumps(REPORT).encode(), json.dumps(REPORT, indent=1).encode()]
    outcome = run_fuzz("json", seeds, read_whole_report, tries, seed=3)
    assert outcome.read > tries / 20
    assert len(outcome.refused) > tries / 20


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("tries", [40, pytest.param(MANY, marks=pytest.mark.slow)])
def test_mutated_models(tries, models):
    outcome = run_fuzz("onnx", models, read_whole_model, tries, 4, GraphMutations(models))
    assert outcome.read > tries / 50
    assert len(outcome.refused) > tries / 20


@pytest.mark.parametrize("tries", [300, pytest.param(MANY, marks=pytest.mark.slow)])
def test_mutated_graphs(tries, models):
    outcome = run_fuzz("onnx", models, read_graph, tries, 5, GraphMutations(models))
    assert outcome.read > tries / 20
    assert len(outcome.refused) > tries / 20
