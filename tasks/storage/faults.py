"""What a storage error means to the user: change something first, or run again."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from flashvsr_core.errors import FlashvsrError, TransientError, UserError

REMEDIES = {
    errno.ENOSPC: "free some space there or choose another place",
    errno.EDQUOT: "free some of your quota there or choose another place",
    errno.EACCES: "get access to it or choose another place",
    errno.EPERM: "get access to it or choose another place",
    errno.EROFS: "choose a place that can be written",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.EFBIG: "choose a file system that holds larger files",
    errno.EISDIR: "name a file, not a directory",
    errno.ENOTDIR: "choose another place",
    errno.ELOOP: "choose another place",
}


@contextmanager
def explained(doing: str, url: str, writing: bool = False) -> Iterator[None]:
    """Turn storage errors into `UserError` and `TransientError`.

    FileExistsError stays as it is, and so does FileNotFoundError unless a store gives it as its answer to `writing`.
    """
    try:
        yield
    except (FlashvsrError, FileExistsError):
        raise
    except FileNotFoundError as error:
        if not writing or code_of(error) is None:
            raise
        if code_of(error) == "NoSuchBucket":
            raise UserError(f"cannot {doing} {url}: the bucket does not exist; create it or choose another") from error
        raise TransientError(f"cannot {doing} {url}: {_reason(error)}; run again") from error  # its upload was removed
    except PermissionError as error:
        raise UserError(f"cannot {doing} {url}: {_reason(error)}; {REMEDIES[errno.EACCES]}") from error
    except OSError as error:
        if error.errno in REMEDIES:
            raise UserError(f"cannot {doing} {url}: {_reason(error)}; {REMEDIES[error.errno]}") from error
        raise TransientError(f"cannot {doing} {url}: {_reason(error)}; run again") from error
    except Exception as error:
        if not _is_remote(error):
            raise
        if type(error).__name__ in ("NoCredentialsError", "PartialCredentialsError", "ParamValidationError"):
            raise UserError(f"cannot {doing} {url}: {error}; check the URL and the credentials") from error
        raise TransientError(f"cannot {doing} {url}: {error}; run again") from error


def code_of(error: BaseException) -> str | None:
    """The S3 error code behind an error that s3fs translated."""
    response = getattr(error.__cause__, "response", None)
    return response["Error"].get("Code") if isinstance(response, dict) and "Error" in response else None


def _reason(error: OSError) -> str:
    return (error.strerror if error.errno else None) or str(error) or type(error).__name__


def _is_remote(error: Exception) -> bool:
    # Clients of remote stores raise their own families of errors (no connection, no credentials), which are no
    # OSErrors; they are known by where they come from, so that s3fs stays an optional package.
    return any(c.__module__.partition(".")[0] in ("botocore", "aiobotocore", "aiohttp") for c in type(error).__mro__)
