"""Stored 10 s rows of some metrics, in the order of time."""

from collections.abc import Collection, Iterator
from typing import Any, Final

import pyarrow as pa
from tailrace_schemas.rows import WINDOW_ROWS

__all__ = ["STRETCH_S", "stored_windows"]

STRETCH_S: Final = 6 * 3600
"""So much time is asked for at once: 100 series with sketches are some 50 MB."""

_COLUMNS: Final = ", ".join(
    {
        "window_start": "toInt64(toUnixTimestamp(window_start)) AS window_start_s",
        "bucket_index": "if(metric IN {sketched:Array(String)}, bucket_index, []) AS codes",
        "bucket_count": "if(metric IN {sketched:Array(String)}, bucket_count, []) AS counts",
    }.get(name, name)
    for name in WINDOW_ROWS.names
)
_ROWS: Final = f"""
SELECT {_COLUMNS} FROM rows_10s FINAL
WHERE metric IN {{metrics:Array(String)}} AND stream = {{stream:String}}
  AND window_start >= {{first:Int64}} AND window_start < {{end:Int64}}
ORDER BY window_start
SETTINGS do_not_merge_across_partitions_select_final = 1
"""  # noqa: S608 - only column names are put in


def stored_windows(
    client: Any, metrics: Collection[str], sketched: Collection[str], first_s: int, end_s: int, stream: str = ""
) -> Iterator[Any]:
    """Record batches of WINDOW_ROWS that start in [first_s, end_s), ascending; one for each STRETCH_S, maybe empty.

    `sketched`: metrics whose sketches are wanted, which are most of the bytes. `client` is a clickhouse-connect client.
    Cost: 1 us a row.

    Raises:
        clickhouse_connect.driver.exceptions.Error: ClickHouse's own.
    """
    parameters = {"metrics": sorted(metrics), "sketched": sorted(sketched), "stream": stream}
    while first_s < end_s:
        until_s = min(end_s, first_s + STRETCH_S)
        table = client.query_arrow(_ROWS, parameters={**parameters, "first": first_s, "end": until_s}, use_strings=True)
        columns = [
            _cast(column.combine_chunks(), field.type) for column, field in zip(table.columns, WINDOW_ROWS, strict=True)
        ]
        yield pa.record_batch(columns, schema=WINDOW_ROWS)
        first_s = until_s


def _cast(column: Any, kind: Any) -> Any:
    if isinstance(column, pa.ChunkedArray):  # of no chunks
        column = pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)
    return column.cast(kind)
