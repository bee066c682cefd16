"""The root of every error that Fewshard raises on purpose; each package derives its own errors from it."""

from typing import Any

from fewshard_core.urls import masked


class FewshardError(Exception):
    """The base of all our errors. The message says what is wrong and what to do. Errors can be pickled.

    FewshardError
    ├── ServeError                the server refuses or fails; `code` is a stable word for clients
    │   ├── MalformedRequest      the request cannot be understood: not JSON, a wrong field, dtype or shape
    │   ├── Unauthorized          the request has no valid bearer token
    │   ├── Forbidden             the token lacks the scope
    │   ├── UnknownModel          no model of that name is served here
    │   ├── NotFound              there is no such path
    │   │   └── ModelUnloaded     a request has unloaded the model
    │   ├── MethodNotAllowed      the path exists, the verb does not
    │   ├── DeadlineExceeded      the request's time was up before the model answered
    │   ├── TooLarge              the body, a text, the number of items or the JSON's depth passes a limit
    │   ├── UnsupportedMedia      the server does not support the content type or the encoding
    │   ├── UnusableItem          one item of the request cannot be used; says which
    │   ├── Overloaded            admission refused the request; says when to come back
    │   ├── CallerGone            the client hung up
    │   ├── InternalError         a bug of ours, or a failing device
    │   │   ├── ModelRestarted    the models' process ended in a forward pass; the request may be sent again
    │   │   ├── OutOfMemory       an item does not fit the device's memory, even alone
    │   │   └── ProcessEnded      the process of the models has ended
    │   ├── NotReady              the server starts or drains, or the model failed to load
    │   ├── ChangeRefused         a model cannot be loaded, or another one needs what should be unloaded
    │   ├── ConfigError           the configuration cannot be used (exit code 2)
    │   ├── StartError            the server cannot start here: port in use, no Ray (exit code 1)
    │   ├── UpdateFailed          a new replica does not come up; the old ones stay
    │   └── ClientError           the Python client's: the server did not answer, or refused
    ├── ModelsError               a checkpoint, a data file or a recipe cannot be used
    │   ├── CheckpointError       a directory is missing, incomplete, damaged or not allowed here
    │   ├── UnusableInput         one input cannot be classified; says which
    │   ├── NotFiniteError        a network's numbers for one input are not finite; says where
    │   ├── SettingError          an environment variable has a value that means nothing
    │   ├── DataError             a data file is missing or has a bad row
    │   ├── RecipeError           a recipe is unknown, or resumed with other settings
    │   ├── BenchError            a benchmark cannot be run here
    │   ├── ExchangeError         shards of a group cannot meet, or one died or hung while rows travelled
    │   ├── NoRoomError           experts do not fit the memory that a shard has left
    │   └── PlacementError        experts do not fit the shards, or a placement is unsound or another model's
    ├── LoadTestError             the load generator itself failed
    │   ├── ScenarioError         a scenario, price list, budget or payload cannot be used (exit code 2)
    │   ├── ServerGone            the server died or stopped answering while it was measured (exit code 4)
    │   └── BenchmarkError        a server did not come up, left, answered wrongly or cannot be installed
    ├── ImageError                bytes that are not an image that can be used
    ├── WireError                 the other end of a group's connection has gone, or sent no frame
    ├── StepFailed                a group's shards could not finish a batch
    ├── Skipped                   a peer does not take part in a point of the benchmark
    └── _RpcFailure               what a gRPC call of the load test failed with
    """

    def __str__(self) -> str:
        # Messages repeat URLs of a configuration or of another library's error, which may hold a password.
        return masked(super().__str__())

    def __reduce__(self) -> tuple[Any, ...]:
        # By default an error is rebuilt from its message alone, which not every constructor accepts.
        return _restore, (type(self), self.args, self.__dict__)


def _restore(kind: type[FewshardError], args: tuple[Any, ...], state: dict[str, Any]) -> FewshardError:
    error = kind.__new__(kind, *args)
    error.args = args
    error.__dict__.update(state)
    return error
