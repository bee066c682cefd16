"""The V2 bodies as pydantic models, only for the OpenAPI document: `oip` parses by hand, which is faster.

Tests validate real answers with these models, so that the two do not diverge.
"""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Datatype = Literal[
    "BOOL",
    "UINT8",
    "UINT16",
    "UINT32",
    "UINT64",
    "INT8",
    "INT16",
    "INT32",
    "INT64",
    "FP16",
    "FP32",
    "FP64",
    "BF16",
    "BYTES",
]


class _Schema(BaseModel):
    model_config = ConfigDict(extra="forbid")


class InputTensor(_Schema):
    name: str
    datatype: Datatype
    shape: list[int] = Field(min_length=1)
    data: list[Any] | None = Field(None, description="nested or flat in row-major order; absent where binary")
    parameters: dict[str, Any] | None = Field(
        None, description="binary_data_size: bytes in the body; content_type: base64, np or str"
    )


class OutputRequest(_Schema):
    name: Literal["scores", "logits", "label"]
    parameters: dict[str, Any] | None = Field(
        None, description="binary_data: bool; classification: the best so many classes"
    )


class InferRequestBody(_Schema):
    id: str | None = None
    parameters: dict[str, Any] | None = Field(
        None, description="timeout in microseconds; binary_data_output: bool; truncate: bool"
    )
    inputs: list[InputTensor] = Field(min_length=1)
    outputs: list[OutputRequest] | None = Field(None, description="all three where empty or null")


class OutputTensor(_Schema):
    name: str
    datatype: Datatype
    shape: list[int]
    data: list[Any] | None = None
    parameters: dict[str, Any] | None = None


class InferResponseBody(_Schema):
    model_name: str
    model_version: str
    id: str | None = None
    parameters: dict[str, Any] = Field(description="tokens, and milliseconds of each stage")
    outputs: list[OutputTensor]


class TensorMetadata(_Schema):
    name: str
    datatype: Datatype
    shape: list[int]


class ModelMetadata(_Schema):
    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class ServerMetadata(_Schema):
    name: str
    version: str
    extensions: list[str]


class IndexEntry(_Schema):
    name: str
    version: str
    state: Literal["READY", "LOADING", "UNAVAILABLE"]
    reason: str


class ModelState(_Schema):
    name: str
    state: Literal["READY", "UNAVAILABLE"]


class ErrorBody(BaseModel):
    """Every answer but 200. `code` is stable, `error` is for people."""

    error: str
    code: str
