"""Export: all measured values of a run, streamed as CSV or Parquet."""

from __future__ import annotations

import zlib
from collections.abc import AsyncIterator, Generator, Iterator
from typing import Annotated, Final, Literal

from fastapi import APIRouter, Query, Request
from fastapi.responses import StreamingResponse
from pydantic import Field
from starlette.concurrency import run_in_threadpool

from snc_service.api.conventions.answers import reads_gzip
from snc_service.api.conventions.parameters import MetricName, Name, RunName, WindowQuery
from snc_service.api.history import export_csv, export_parquet
from snc_service.api.state import InAccess, InService, Service
from snc_service.api.system.openapi import responses
from snc_service.auth import Access
from snc_service.problems import Problem
from snc_service.store.types import Extent, Piece

MOST_EXPORTS: Final = 4  # at once: a stalled one holds a row group, about 20 MB
MOST_OF_ONE_TOKEN: Final = 2
CHUNK_BYTES: Final = 256 * 1024

router = APIRouter(prefix="/api/v1", tags=["history"])


class ExportQuery(WindowQuery):
    """The part of a run and the format; an omitted filter selects everything."""

    format: Literal["csv", "parquet"] = "csv"
    metric: list[MetricName] = Field(
        default_factory=list, max_length=50, description="A metric or a scalar; may be repeated."
    )
    layer: list[Name] = Field(
        default_factory=list, max_length=500, description="Leaves out scalars; may be repeated."
    )
    attempt: int | None = Field(
        None, ge=0, le=2**31 - 1, description="Of this attempt only; by default of every one."
    )

    def extent(self) -> Extent:
        """Return the `Extent` of the store."""
        return Extent(
            metrics=tuple(self.metric) or None,
            layers=tuple(dict.fromkeys(self.layer)) or None,
            from_step=self.from_step,
            to_step=self.to_step,
            attempt=self.attempt,
        )


class Interrupted(Exception):
    """A stream that must not look complete: its connection is closed with an error."""


CSV_EXAMPLE = (
    "run,attempt,metric,layer,step,value\r\n"
    '"gpt-small-1",0,"sigma","fc1.weight",100,1.1\r\n'
    '"gpt-small-1",0,"loss",,100,0.71\r\n'
)


@router.get(
    "/runs/{run}/export",
    response_class=StreamingResponse,
    responses=responses(
        "run-unknown",
        "layer-unknown",
        "history-thinned",
        "invalid",
        "format-unavailable",
        "overloaded",
        "draining",
        "store-damaged",
        "store-unavailable",
        example=CSV_EXAMPLE,
        media_type="text/csv",
        others={"application/vnd.apache.parquet": {"schema": {"type": "string"}}},
    ),
)
def export_run(
    request: Request,
    service: InService,
    access: InAccess,
    run: RunName,
    query: Annotated[ExportQuery, Query()],
) -> StreamingResponse:
    """Return all values of a run as a table: run, attempt, metric, layer, step, value.

    A scalar has no layer; what was not measured has no row. Values are what was sent, bit for bit:
    in Parquet every bit, in CSV as the shortest number that means the same float32 (`nan`, `inf`,
    `-inf`). CSV puts an apostrophe before what a spreadsheet would take for a formula in a name, at
    its beginning and behind each `,` `;` `:` `|`, tab or line separator: take one off in each.
    Everything stored before the request is in the answer once; what arrives meanwhile may be. An
    answer that breaks off, because the run was deleted or the service stops, ends with an error of
    the connection, never as if it were whole.
    """
    if query.format == "parquet" and not export_parquet.can_write():
        raise Problem(
            "format-unavailable",
            "format must be csv on this service: for parquet, install it with "
            "pip install 'spectral-norm-constraint[parquet]'",
            field="format",
        )
    if service.draining:
        raise Problem("draining", "the service is stopping")
    if service.exports >= MOST_EXPORTS:
        raise Problem("overloaded", f"{MOST_EXPORTS} exports are under way already")
    share = service.shares.of(access)
    if share is not None and share.exports >= MOST_OF_ONE_TOKEN:
        raise Problem(
            "rate-limited",
            f"exports of one token under way must be at most {MOST_OF_ONE_TOKEN}",
        )
    pieces = service.store.histories.scan(run, query.extent())
    chunks, media_type, headers = _written(request, run, query.format, pieces)
    name = f'attachment; filename="{run}.{query.format}"'
    return StreamingResponse(
        _streamed(service, access, chunks),
        media_type=media_type,
        headers={"Content-Disposition": name, "Cache-Control": "no-store", **headers},
    )


def _written(
    request: Request, run: str, form: str, pieces: Iterator[Piece]
) -> tuple[Generator[bytes], str, dict[str, str]]:
    if form == "parquet":
        chunks = _cut(export_parquet.parquet_chunks(run, pieces))
        return chunks, export_parquet.MEDIA_TYPE, {}
    chunks = _cut(export_csv.csv_chunks(run, pieces))
    headers = {"Vary": "Accept-Encoding"}
    if not reads_gzip(request):
        return chunks, export_csv.MEDIA_TYPE, headers
    return _packed(chunks), export_csv.MEDIA_TYPE, {**headers, "Content-Encoding": "gzip"}


def _cut(chunks: Iterator[bytes]) -> Generator[bytes]:
    """Yield the same bytes in chunks small enough for slow connections."""
    for chunk in chunks:
        for start in range(0, len(chunk), CHUNK_BYTES):
            yield chunk[start : start + CHUNK_BYTES]


def _packed(chunks: Iterator[bytes]) -> Generator[bytes]:
    packer = zlib.compressobj(1, wbits=31)
    for chunk in chunks:
        if packed := packer.compress(chunk):
            yield packed
    yield packer.flush()


async def _streamed(
    service: Service, access: Access, chunks: Generator[bytes]
) -> AsyncIterator[bytes]:
    """Yield chunks as they are made, one export at a time; a client that disconnects ends it."""
    share = service.shares.of(access)
    service.exports += 1
    if share is not None:
        share.exports += 1
    try:
        while True:
            if service.draining or not service.tokens.counts(access):
                raise Interrupted("the service stops, or the token does not count any more")
            async with service.exporting:
                chunk: bytes | None = await run_in_threadpool(next, chunks, None)
            if chunk is None:
                return
            yield chunk
            await service.tokens.refresh()
    finally:
        service.exports -= 1
        if share is not None:
            share.exports -= 1
        chunks.close()
