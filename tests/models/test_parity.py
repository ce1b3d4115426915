"""Every family with every head against transformers, live: logits, loss, gradients by name, the trip there and back."""

import copy
import dataclasses
import inspect
import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from jaxft import build
from jaxft.hf import folder as hf_folder
from jaxft.hf import load as hf_load
from jaxft.hf import save as hf_save
from jaxft.hf.layout import parts, rows
from jaxft.labels import NO_LABEL
from jaxft.layers.loss import sigmoid_binary_cross_entropy, softmax_cross_entropy
from jaxft.layers.vocab import VocabLogits
from jaxft.models import MODELS
from jaxft.registry import lookup
from jaxft.state import with_losses
from tests import tiny

pytestmark = pytest.mark.slow  # not one test is, but there are hundreds: the second Python is spared them
TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}
OUTPUTS = {"sequence": 5, "token": 5, "span": 2, "multiple_choice": 1}
WHOLE = ("sequence", "multiple_choice")  # heads that judge whole texts
LENGTHS, LENGTH = (36, 21, 5), 40
ANSWERS = "seq2seq_lm"  # the head whose logits are those of a text of its own
DETECTION = "detection"  # the head with one logit a token
FAMILIES = {name: lookup(MODELS, name, "model.name") for name in MODELS}
FAMILIES = {name: family for name, family in FAMILIES.items() if family.KIND != "vision"}  # those: test_vit_parity.py
CASES = [(name, head, "") for name, family in FAMILIES.items() for head in family.HF_HEADS]


def head_of(family, variant):
    """The head that shows what a variant computes otherwise."""
    return next((head for head in family.HF_HEADS if variant.startswith(head)), next(iter(family.HF_HEADS)))


CASES += [(name, head_of(family, variant), variant) for name, family in FAMILIES.items() for variant in family.VARIANTS]


@pytest.fixture(scope="module", params=CASES, ids=lambda case: "-".join(filter(None, case)))
def case(request, tmp_path_factory):
    """A tiny random model of transformers with a head, a folder that it was saved to, and what jaxft makes of that."""
    torch = pytest.importorskip("torch", reason="live parity needs torch")
    import transformers

    name, head, variant = request.param
    family = FAMILIES[name]
    cfg = family.VARIANTS[variant] if variant else family.TINY
    # Unlike the default, so that an eps which is not read shows.
    cfg = dataclasses.replace(cfg, **({"eps": 1e-3} if "eps" in vars(cfg) else {}))
    fields = {**family.config_to_hf(cfg), "num_labels": outputs(head), "attn_implementation": "eager"}
    torch.manual_seed(0)
    architecture = getattr(transformers, family.HF_ARCHITECTURES[head])
    # A pooler that is of no use to who asks for the vectors of tokens.
    options = {"add_pooling_layer": False} if "add_pooling_layer" in inspect.signature(architecture).parameters else {}
    model = architecture(transformers.AutoConfig.for_model(name, **fields), **options)
    if head == ANSWERS and cfg.tied is False:  # transformers 5 makes every T5 tied, but leaves one as it finds it
        model.lm_head.weight = torch.nn.Parameter(torch.zeros_like(model.lm_head.weight))
    with torch.no_grad():
        for tensor in learned(model).values():  # norms keep their mean, which is not 1 where the scale is 1 + weight
            tensor.normal_(1.0 if (tensor == 1).all() else 0.0, 0.2)
    folder = tmp_path_factory.mktemp(name)
    model.eval().save_pretrained(folder)
    net, params = load(family, folder, head)
    assert net.cfg == cfg
    return SimpleNamespace(family=family, head=head, model=model, folder=folder, net=net, params=params)


def learned(model):
    """The tensors that a checkpoint brings: parameters, and buffers that are saved; not fixed positions."""
    tensors = {name: tensor for name, tensor in model.named_parameters() if tensor.requires_grad}
    saved = model.state_dict()
    return tensors | {name: tensor for name, tensor in model.named_buffers() if name in saved}


def outputs(head):
    return OUTPUTS.get(head, 2)  # of the head over the vocabulary nobody asks


def load(family, folder, head):
    c = tiny.config()
    net = build.network(
        family,
        family.config_from_hf(hf_load.read_config(folder)),
        head=head,
        outputs=outputs(head),
        model=c.model,
        rules=c.sharding,
        mesh=tiny.mesh(data=1, fsdp=4, tensor=2),
    )
    params, said = build.parameters(net, folder, seed=0, reset_head=False)
    assert not said
    return net, params


def texts(family):
    """(ids, types) of one text, one pair and one short text; no id is that of padding, the last one may end texts."""
    rng = np.random.default_rng(0)
    ids = [rng.integers(3, family.TINY.vocab, n).astype(np.int32) for n in LENGTHS]
    if family.KIND == "encdec":
        for one in ids:
            one[-1] = family.TINY.eos_id
    kinds = min(family.TINY.types, 2)
    return [(x, (np.arange(len(x)) > 9).astype(np.int32) * (kinds == 2 and row == 1)) for row, x in enumerate(ids)]


def batch_of(packed, length=LENGTH, before=0):
    """Rows of segments as the pipeline makes them, with `before` tokens of padding first; and their answers."""
    B, S = len(packed), max(map(len, packed))
    batch = {key: np.zeros((B, length), np.int32) for key in ("ids", "type", "segment", "position")}
    batch |= {key: np.zeros((B, length - 9), np.int32) for key in ("target_ids", "target_segment", "target_position")}
    batch["first"] = np.zeros((B, S), np.int32)
    for row, segments in enumerate(packed):
        at = target_at = before
        for slot, (ids, types) in enumerate(segments):
            span = (row, slice(at, at + len(ids)))
            batch["ids"][span], batch["type"][span], batch["segment"][span] = ids, types, slot + 1
            batch["position"][span], batch["first"][row, slot] = np.arange(len(ids)), at
            at += len(ids)
            answer = ids[::-2]
            span = (row, slice(target_at, target_at + len(answer)))
            batch["target_ids"][span], batch["target_segment"][span] = answer, slot + 1
            batch["target_position"][span] = np.arange(len(answer))
            target_at += len(answer)
    return batch


def segment_of(case, batch):
    """The segment of each place that there are logits of, where these are not of whole segments."""
    return batch["target_segment" if case.head == ANSWERS else "segment"]


def hub_inputs(case, batch):
    """What transformers calls the arrays of a batch of one text a row."""
    mask_BL = batch["segment"] > 0
    ids_BL = np.where(mask_BL, batch["ids"], case.net.cfg.pad_id)
    inputs = {"input_ids": ids_BL, "attention_mask": mask_BL, "token_type_ids": batch["type"]}
    if not case.family.TINY.types:
        del inputs["token_type_ids"]
    if case.family.KIND == "decoder":  # else transformers counts padding into the length that dynamic rope looks at
        inputs["position_ids"] = batch["position"]
    if case.head == ANSWERS:
        mask_BT = batch["target_segment"] > 0
        inputs["decoder_input_ids"] = np.where(mask_BT, batch["target_ids"], case.net.cfg.pad_id)
        inputs["decoder_attention_mask"] = mask_BT
    if case.head == "multiple_choice":  # the texts are the choices of one question
        inputs = {name: array[None] for name, array in inputs.items()}
    return {name: array.astype(np.int64) for name, array in inputs.items()}


def to_torch(case, batch):
    import torch

    return {name: torch.tensor(array) for name, array in hub_inputs(case, batch).items()}


def logits_of(output):
    """One array [B, ..., C] of what transformers gives; start and end are two outputs of a token."""
    import torch

    if "last_hidden_state" in output:
        return output.last_hidden_state
    return output.logits if "logits" in output else torch.stack([output.start_logits, output.end_logits], -1)


def expected(case, batch):
    import torch

    with torch.no_grad():
        logits = logits_of(case.model(**to_torch(case, batch))).numpy()
    return logits.T if case.head == "multiple_choice" else logits


def per_text(case, logits, batch):
    """The logits of each text in order: [C] of a sequence head, [tokens, C] of one over tokens."""
    if case.head in WHOLE:
        return [logits[row, slot] for row in range(len(logits)) for slot in range(batch["segment"][row].max())]
    segment = segment_of(case, batch)
    return [logits[row][segment[row] == slot + 1] for row in range(len(logits)) for slot in range(segment[row].max())]


def test_logits_equal_those_of_transformers_alone_packed_and_padded_on_the_left(case):
    forward, parts = jax.jit(case.net.forward), texts(case.family)
    alone = batch_of([[part] for part in parts])
    theirs = expected(case, alone)
    theirs = per_text(case, theirs[:, None] if case.head in WHOLE else theirs, alone)
    for batch in (alone, batch_of([parts[:1], parts[1:]]), batch_of([[part] for part in parts], before=4)):
        ours = per_text(case, np.asarray(forward(case.params, batch)), batch)
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(a, b, **TOLERANCE)


def labels_of(case, batch):
    """Labels of every text or token, a few of them ignored."""
    rng = np.random.default_rng(1)
    segment = segment_of(case, batch)
    if case.head == "multiple_choice":
        return np.array([1], np.int32)
    shape = (len(LENGTHS),) if case.head == "sequence" else segment.shape
    classes = case.net.cfg.vocab if case.head.endswith("_lm") else outputs(case.head)
    if case.head == DETECTION:  # 0 and 1, after those are left out that are 0 here
        labels = rng.integers(0, 3, shape).astype(np.int32)
        return np.where((segment > 0) & (labels > 0), labels - 1, NO_LABEL)
    labels = rng.integers(0, classes, shape).astype(np.int32)
    return labels if case.head == "sequence" else np.where((segment > 0) & (labels > 0), labels, NO_LABEL)


def routers_loss(cfg, output, batch):
    """What routers add to the loss: transformers balances experts too, and has no z-loss for these families."""
    import torch

    if not getattr(cfg, "balance", False):
        return 0
    logits = torch.stack(output.router_logits)[:, batch["segment"].reshape(-1) > 0]
    return cfg.balance_coef * output.aux_loss + cfg.z_coef * logits.logsumexp(-1).square().mean()


def torch_loss(case, logits, labels):
    import torch

    if case.head == DETECTION:
        counts = labels != NO_LABEL
        return torch.nn.functional.binary_cross_entropy_with_logits(logits[counts], labels[counts].float())
    flat = logits.reshape(-1, logits.shape[-1])
    return torch.nn.functional.cross_entropy(flat, labels.reshape(-1).long(), ignore_index=NO_LABEL)


def test_loss_and_gradients_equal_those_of_torch_by_name(case):
    import torch
    from transformers.core_model_loading import revert_weight_conversion

    batch = batch_of([[part] for part in texts(case.family)])
    labels = labels_of(case, batch)

    def loss(params):
        logits, own = case.net.forward_with_losses(params, batch, None)
        wanted = jnp.asarray(labels[:, None] if case.head in WHOLE else labels)
        weights = jnp.ones(wanted.shape)
        if isinstance(logits, VocabLogits):
            task = logits.cross_entropy(wanted, weights)
        elif case.head == DETECTION:
            task = {"loss": sigmoid_binary_cross_entropy(logits[..., None], wanted[..., None], wanted != NO_LABEL)}
        else:
            logits = logits.reshape(1, 1, -1) if case.head == "multiple_choice" else logits
            task = {"loss": softmax_cross_entropy(logits, wanted, weights)}
        total, weight = with_losses(task, own)["loss"]
        return total / weight

    value, grads = jax.jit(jax.value_and_grad(loss))(case.params)
    case.model.zero_grad()
    output = case.model(**to_torch(case, batch))
    logits = logits_of(output)
    theirs = routers_loss(case.net.cfg, output, batch) + torch_loss(case, logits, torch.tensor(labels))
    theirs.backward()
    np.testing.assert_allclose(value, theirs.item(), **TOLERANCE)
    flat, seen, places = hf_load.flatten(grads), set(), parts(rows(case.net.table), case.net.stored)
    wanted = {
        name: parameter.grad
        for name, parameter in case.model.named_parameters(remove_duplicate=False)
        # An untied BERT of transformers 5 has a bias that nothing is computed with.
        if name not in case.net.tied and parameter.grad is not None
    }
    # A buffer has none: what is read from one must not train.
    wanted |= {name: torch.zeros_like(x) for name, x in learned(case.model).items() if not x.requires_grad}
    wanted = revert_weight_conversion(case.model, wanted)  # names of disk, where version 5 has others in memory
    for path, row in rows(case.net.table).items():
        for index, name in row.tensors(flat[path].shape):
            grad = np.asarray(flat[path])[tuple(map(slice, case.net.stored[path]))][index]
            found = row.layout.to_disk(grad)
            part = places[path].of(row, tuple(map(slice, (0,) * found.ndim, found.shape)))
            np.testing.assert_allclose(found, wanted[name].numpy()[part], **TOLERANCE, err_msg=name)
            seen.add(name)
    assert seen == set(wanted)


def test_load_then_save_returns_every_tensor_bit_for_bit_and_opens_in_transformers(case, tmp_path):
    import transformers

    hf_save.save(tmp_path, case.params, case.net.table, dtype="float32", shapes=case.net.stored)
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (tmp_path, case.folder))
    assert ours.keys() == theirs.keys()
    table = rows(case.net.table)
    copies = {copy: of for path, row in table.items() for copy, of in row.copies(case.net.stored[path])}
    assert all(ours[name].tobytes() == theirs[copies.get(name, name)].tobytes() for name in theirs)
    labels = {str(i): f"label {i}" for i in range(outputs(case.head))}
    config = hf_folder.config_of(case.net, {"id2label": labels}, "float32")
    (tmp_path / "config.json").write_text(json.dumps(config))
    model = (
        getattr(transformers, config["architectures"][0]).from_pretrained(tmp_path, attn_implementation="eager").eval()
    )
    model = copy.deepcopy(model)  # into memory of its own: how the tensors of a file are aligned changes last bits
    batch = batch_of([[part] for part in texts(case.family)])
    again = SimpleNamespace(**{**vars(case), "model": model})
    np.testing.assert_array_equal(expected(again, batch), expected(case, batch))
