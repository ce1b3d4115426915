"""What the tests of methods with virtual tokens share: tiny networks, random numbers, and the `peft` library."""

import functools
import warnings

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxft import adapters, build, exporting, verify
from jaxft.generation.write import one_more
from jaxft.hf import folder as hf_folder
from jaxft.hf import save
from tests import tiny

OUTPUTS = 3


def maker(family, head, cfg=None, *, on=None, **model):
    """A function of `peft` that declares the network."""
    c = tiny.config()
    section = c.model if not model else c.model.__class__(**{**vars(c.model), **model})
    return functools.partial(
        build.network,
        family,
        cfg or family.TINY,
        head=head,
        outputs=OUTPUTS,
        model=section,
        rules=c.sharding,
        mesh=on or tiny.mesh(devices=1),
    )


def randomised(net, which=lambda path: True):
    """Parameters that differ from their beginning."""
    params, _ = build.parameters(net, None, 0, False)
    rng, flat = np.random.default_rng(0), flatten_dict(params, sep="/")
    for path in filter(which, flat):
        flat[path] += 0.3 * rng.standard_normal(flat[path].shape).astype(np.float32)
    return unflatten_dict(flat, sep="/")


def plain(params):
    return unflatten_dict({k: v for k, v in flatten_dict(params, sep="/").items() if "/adapter/" not in k}, sep="/")


def saved_base(folder, make, params):
    """The network without its method, as a folder of the hub."""
    net = make()
    labels = {str(i): str(i) for i in range(OUTPUTS)}
    task = {"id2label": labels, "label2id": {name: i for i, name in enumerate(labels)}} if "seq" in net.head else {}
    folder.mkdir()
    save.save(folder, plain(params), net.table, dtype="float32", shapes=net.stored)
    save.save_json(folder, "config.json", hf_folder.config_of(net, task, "float32"))
    return folder, task


def theirs(base, net, given, wrap):
    """Logits of the model that `wrap` makes of transformers' one."""
    import torch
    import transformers

    cls = getattr(transformers, net.family.HF_ARCHITECTURES[net.head])
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what peft says to transformers is not ours to mend
        model = wrap(cls.from_pretrained(str(base), dtype=torch.float32, attn_implementation="eager")).eval()
        out = model(**{name: torch.from_numpy(array) for name, array in given.items()})
    return model, out.logits.numpy()


def exchanged(tmp_path, make, method):
    """Largest differences: (the adapter in peft, what peft saves of it read here, from the plain network)."""
    import peft

    net = make(peft=method)
    params = randomised(net, net.trains)
    base, task = saved_base(tmp_path / "base", make, params)
    folder = tmp_path / "adapter"
    exporting.write(folder, net, params, base=str(base), task=task, beside=lambda path: None, card="")
    batch, given = verify._texts(net)
    ours = verify._ours(net, params, batch)
    model, logits = theirs(base, net, given, lambda model: peft.PeftModel.from_pretrained(model, str(folder)))
    model.save_pretrained(str(tmp_path / "again"))
    inside = slice(None) if ours.ndim == 2 else batch["segment"] > 0
    logits = logits if ours.ndim == 2 else logits[:, -ours.shape[1] :]
    again = read(make, base, tmp_path / "again", batch)
    off = verify._ours(make(), plain(params), batch)
    return tuple(float(np.abs(x - ours)[inside].max()) for x in (logits, again, off))


def read(make, base, folder, batch):
    """Logits of the model in `base` with the adapter in `folder`."""
    net, adapter = adapters.network(make, folder)
    params, _ = build.parameters(net, base, 0, False)
    return verify._ours(net, adapters.applied(net, params, adapter), batch)


def born_in_peft(tmp_path, make, config):
    """Largest difference between an adapter that peft made by `config` and what is read of it here."""
    import peft
    import torch

    net = make()
    base, _ = saved_base(tmp_path / "base", make, randomised(net, lambda path: False))
    batch, given = verify._texts(net)
    short = {name: array[:, :30] for name, array in batch.items()}
    torch.manual_seed(0)
    model, logits = theirs(
        base,
        net,
        {name: array[:, :30] for name, array in given.items()},
        lambda model: peft.get_peft_model(model, config),
    )
    model.save_pretrained(str(tmp_path / "made"))
    ours = read(make, base, tmp_path / "made", short)
    return float(np.abs(logits[:, -30:] - ours)[short["segment"] > 0].max())


def written_again(net, params, room=3):
    """(logits of the last `room` tokens of texts that begin with padding, by the cache; and of whole texts)."""
    import jax

    rng = np.random.default_rng(1)
    B, L, pad = 2, 12, np.array([0, 3])
    ids_BL = rng.integers(2, net.cfg.vocab, (B, L)).astype(np.int32)
    segment_BL = (np.arange(L)[None] >= pad[:, None]).astype(np.int32)
    position_BL = np.maximum(np.arange(L)[None] - pad[:, None], 0).astype(np.int32)
    batch = {"ids": ids_BL, "segment": segment_BL, "position": position_BL}
    start = jax.jit(net.start, static_argnums=2)
    next_ = jax.jit(net.next)
    apart = net.apart(params, keep=True)
    cut = lambda a, b: {name: array[:, a:b] for name, array in batch.items()}  # noqa: E731
    logits, cache = start(apart, cut(0, L - room), room)
    found = [logits]
    for i in range(L - room, L):
        logits, cache = next_(apart, one_more(ids_BL[:, i : i + 1], cache), cache)
        found.append(logits)
    whole = jax.jit(net.forward)(params, batch)
    return np.stack(found, 1), np.asarray(whole)[:, -room - 1 :]
