"""What goes wrong with a hub, in our words; and the peace and quiet while it is asked."""

import contextlib
import warnings
from collections.abc import Iterator

from mmt_cli.errors import ModelError, shown


class AwayError(Exception):
    """The hub cannot be reached or is out of order; its cache may still serve."""


@contextlib.contextmanager
def hushed(*, progress: bool) -> Iterator[None]:
    """Keep warnings, hints and log lines off stderr, and bars too unless wanted: what goes wrong is raised."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import logging  # here, since only hub ids need it

        from huggingface_hub.utils import logging as hub_logging
        from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

        level = hub_logging.get_verbosity()
        hide = not progress and not are_progress_bars_disabled()
        if level == logging.WARNING:  # the default; who sets HF_HUB_VERBOSITY wants to see
            hub_logging.set_verbosity(logging.CRITICAL)
        if hide:
            disable_progress_bars()
        try:
            yield
        finally:
            hub_logging.set_verbosity(level)
            if hide:
                enable_progress_bars()


def told(repo_id: str, revision: str | None) -> str:
    """Return what messages call a revision of a repository."""
    return repo_id if revision is None else f"{repo_id}, revision {revision}"


@contextlib.contextmanager
def explained(repo_id: str, revision: str | None) -> Iterator[None]:
    """Turn what huggingface_hub raises into one line with what to do, or `AwayError` where the cache may help."""
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError, RevisionNotFoundError

    what = told(repo_id, revision)
    try:
        yield
    except ModelError:
        raise
    except RevisionNotFoundError as error:
        raise ModelError(f"no such revision on the hub ({repo_id}, {revision or 'main'}); check --revision") from error
    except GatedRepoError as error:
        raise ModelError(
            f"the repository asks for consent ({what}); accept its terms on the hub and set HF_TOKEN, or name a folder"
        ) from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403, 404):  # the hub says 401 for what is not there, too
            raise ModelError(
                f"no such model here or on the hub ({what}, status {status}); "
                "check the name, or set HF_TOKEN to a token that may read it"
            ) from error
        raise AwayError(f"status {status}") from error
    except LocalEntryNotFoundError as error:  # what a download makes of a lost connection
        raise AwayError(_reason(error.__cause__ or error)) from error
    except OSError as error:
        if error.errno is None or isinstance(error, ConnectionError):
            raise AwayError(_reason(error)) from error
        raise ModelError(
            f"the hub's cache cannot be written ({error.filename or what}, {error.strerror}); "
            "make room, or set HF_HOME to another folder"
        ) from error
    except Exception as error:  # the HTTP library's own, which library depends on huggingface_hub's version
        raise AwayError(_reason(error)) from error


def _reason(error: BaseException) -> str:
    return shown(" ".join(str(error).split()) or type(error).__name__)
