"""A name, a URL or a folder -> a folder. Only a name that asks for it reaches a network: here, or in jaxft.remote."""

import fnmatch
import re
import socket
import threading
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

from jaxft import remote
from jaxft.hf import files
from jaxft.registry import UserError

# Weights in safetensors, configs, tokenizers; nothing else is ever read. No folders: those hold other formats. But for
# one, in which sentence-transformers keeps how vectors are pooled (1_Pooling, and so nothing that begins otherwise).
WANTED = [
    "*.json",
    "model*.safetensors",
    "adapter_model.safetensors",
    "*.txt",
    "*.model",
    "*.jinja",
    "*.spm",
    "*.codes",
]
UNWANTED = ["[!1]*/*"]
CONNECT_SECONDS = 1.0


def resolve(name_or_folder: str, *, weights: bool = True, field: str = "model.hf") -> Path:
    """The local folder of that path, a copy of that URL, or the snapshot of that hub id (`google-bert/bert-base`).

    With `weights` one without safetensors is refused: at once, not after the data have been read. `field` is the
    config's, for messages.

    An unreachable hub is noticed within two seconds; a copy in the hub's cache is then used. Raises UserError for a
    folder that does not exist, an id that the hub does not know or does not give out, and a hub that does not answer.
    """
    folder = remote.folder(name_or_folder, field, _wanted)
    local = folder.is_dir()
    if not local and not _is_hub_id(name_or_folder):
        raise UserError(f"{field}={name_or_folder!r}: no such folder (looked in {folder.absolute().parent})")
    if not local:
        folder = _snapshot(name_or_folder, weights, field)
    if weights and not files.has_weights(folder):
        raise UserError(files.no_weights(folder, "" if local else name_or_folder))
    return folder


def _wanted(name: str) -> bool:
    """Whether the file of that path in a model folder is ever read; as the hub's client matches patterns."""
    wanted, unwanted = (any(fnmatch.fnmatch(name, pattern) for pattern in patterns) for patterns in (WANTED, UNWANTED))
    return wanted and not unwanted


def _is_hub_id(name: str) -> bool:
    """`name` or `owner/name`, in the characters that the hub allows, and no file of this machine."""
    part = r"[A-Za-z0-9_]([\w.-]*[A-Za-z0-9_])?"
    return re.fullmatch(f"({part}/)?{part}", name, re.ASCII) is not None and not Path(name).exists()


def _snapshot(name: str, weights: bool, field: str) -> Path:
    # Imported here: half a second that a local folder need not pay.
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub import errors as hub

    offline = constants.HF_HUB_OFFLINE
    reachable = not offline and _answers(constants.ENDPOINT)
    try:
        folder = Path(
            snapshot_download(name, allow_patterns=WANTED, ignore_patterns=UNWANTED, local_files_only=not reachable)
        )
        if weights and not reachable and not files.has_weights(folder):
            raise hub.LocalEntryNotFoundError(f"{folder} was cached in part")
        return folder
    except hub.GatedRepoError:
        raise UserError(
            f"{field}={name!r} is gated: accept its terms on {constants.ENDPOINT}/{name}, then set HF_TOKEN"
        ) from None
    except hub.RepositoryNotFoundError:
        raise UserError(
            f"{field}={name!r} is neither a folder here nor a model on {constants.ENDPOINT};"
            " check the spelling, or set HF_TOKEN if it is private"
        ) from None
    except hub.LocalEntryNotFoundError as error:
        why = "HF_HUB_OFFLINE is set" if offline else f"{constants.ENDPOINT} does not answer"
        if isinstance(error.__cause__, hub.HfHubHTTPError):
            why = f"{constants.ENDPOINT} answered {error.__cause__.response.status_code}"
        raise UserError(
            f"{field}={name!r} is neither a folder here nor complete in the hub cache ({constants.HF_HUB_CACHE}), and"
            f" {why}; give a local folder, or try again with a network"
        ) from None
    except OSError as error:  # the errors of the hub's client among them, of which the text may hold signed addresses
        reason = error.strerror or type(error).__name__
        raise UserError(f"{field}={name!r}: downloading to {constants.HF_HUB_CACHE} failed: {reason}") from None


def _answers(endpoint: str) -> bool:
    """Whether the hub, or the proxy before it, takes a connection. The hub's own client waits for 10 s or more."""
    url = urlsplit(endpoint)
    proxies = urllib.request.getproxies()
    if url.scheme in proxies and not urllib.request.proxy_bypass(url.hostname or ""):
        proxy = proxies[url.scheme]
        url = urlsplit(proxy if "://" in proxy else f"//{proxy}")
    port = url.port or (443 if url.scheme == "https" else 80)
    connected = threading.Event()

    def connect() -> None:
        # A refused, unroutable or unresolved address is an OSError: the event stays unset.
        try:
            socket.create_connection((url.hostname, port), CONNECT_SECONDS).close()
        except OSError:
            return
        connected.set()

    # In a thread, since looking up a name takes no time limit.
    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(CONNECT_SECONDS)
    return connected.is_set()
