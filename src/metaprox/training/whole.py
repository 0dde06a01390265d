"""Whether what a run has left is as it was written, for whoever shows it without reading all of it."""

import warnings

from torch import Tensor

from metaprox.errors import DamagedFileError, RunFolderError
from metaprox.storage import checksums
from metaprox.storage.files import damaged
from metaprox.training import log, weights
from metaprox.training.folder import RunFolder
from metaprox.training.loop import finished_weights


def check(folder: RunFolder) -> dict[str, Tensor] | None:
    """Returns the weights of a run that has finished, after a look at every file of it of which there is a checksum.

    These are those that checksums.json names, weights, and the log.
    Of a run that has not finished the log is looked at up to the newest checkpoint, and a checkpoint that is damaged
    is warned of by name, since the run goes on from the one before. Reads all that it looks at.

    Raises:
        DamagedFileError: one is not as it was written, or missing; names it, and says what to do.
        RunFolderError: the weights are those of other settings.
    """
    checksums.check_all(folder.path)
    if folder.weights.exists():
        return finished_weights(folder, folder.configuration())
    for path in folder.checkpoints():
        try:
            _, meta = weights.load(path, weights.CHECKPOINT)
        except DamagedFileError as error:
            warnings.warn(f"{error}: the run can go on from the checkpoint before, if there is one", stacklevel=4)
        except RunFolderError:  # it made way for a newer one just now
            continue
        else:
            with damaged(path, "a checkpoint of a run"):
                known = {"size": int(meta["metrics_size"]), "sha256": meta.get("metrics_sha256")}
            log.check(folder.metrics, known)
            break
    return None
