"""The index of `refimpl data index` as an Arrow IPC file: the candidate that `bench_arrow_index` measures.

One row per image. Strings are large_string, tags large_list<dictionary<int32, large_string>>, whose values are
`class:name`, since pandas refuses a dictionary with an entry twice. What isn't one entry per image (containers,
classes, files left out) is JSON in the schema's metadata. See https://arrow.apache.org/docs/format/Columnar.html.
"""

import base64
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from refimpl.data.index.builder import Gathered, packed_strings
from refimpl.data.index.columns import places_of, strings
from refimpl.data.index.index_file import NUMBERS, Shaped, Table, _Mapping, in_memory
from refimpl.data.index.merge import _distinct
from refimpl.errors import InputError

TEXTS = ("id", "name", "caption")
PROBLEMS = ("bad_path", "bad_reason", "bad_kind")
FACTS = b"refimpl-index"


def schema(facts: Mapping[str, Any], known: Sequence[str]) -> pa.Schema:
    """The columns `known` of an index, and its facts as JSON."""
    tag = pa.dictionary(pa.int32(), pa.large_string())
    kinds: dict[str, pa.DataType] = {name: pa.large_string() for name in TEXTS}
    kinds |= {name: pa.from_numpy_dtype(np.dtype(kind)) for name, kind in NUMBERS.items()}
    kinds |= {"fold": pa.int64(), "sha256": pa.binary(32), "tags": pa.large_list(tag)}
    fields = [pa.field(name, kind, nullable=False) for name, kind in kinds.items() if name in known]
    return pa.schema(fields, {FACTS: json.dumps(facts).encode()})


def record_batch(table: Table) -> pa.RecordBatch:
    """A table as one record batch; of its arrays only where strings begin is copied."""
    arrays = table.arrays
    columns: dict[str, pa.Array] = {name: _strings(arrays, name) for name in TEXTS}
    columns |= {name: pa.array(arrays[name]) for name in (*NUMBERS, "fold") if name in arrays}
    return _described(table, columns)


def gathered_batch(gathered: Gathered) -> pa.RecordBatch:
    """The images read so far as one record batch, their lists turned into columns by pyarrow."""
    columns = {name: pa.array(gathered.strings[name], pa.large_string()) for name in TEXTS}
    for name, values in gathered.numbers.items():
        columns[name] = pa.array(values, pa.from_numpy_dtype(np.dtype(NUMBERS.get(name, np.int64))))
    few = {"tag.ends": gathered.tag_ends, "tag.ids": gathered.tag_ids, "tag_class": gathered.tag_class}
    kinds = {"tag.ends": np.int64, "tag.ids": np.int32, "tag_class": np.int16}
    arrays = {name: np.array(values, kinds[name]) for name, values in few.items()}
    for name in ("tag_name", *PROBLEMS):
        arrays |= packed_strings(name, gathered.strings[name])
    if gathered.hashes:
        arrays["sha256"] = np.frombuffer(b"".join(gathered.hashes), np.uint8).reshape(-1, 32)
    facts = {"containers": list(map(list, gathered.containers)), "classes": list(gathered.classes)}
    return _described(Table(arrays, facts), columns)


def _described(table: Table, columns: dict[str, pa.Array]) -> pa.RecordBatch:
    """The columns of strings and numbers, with hashes and tags, under the schema that says the rest."""
    arrays = table.arrays
    if "sha256" in arrays:
        count = len(arrays["sha256"])
        columns["sha256"] = pa.Array.from_buffers(pa.binary(32), count, [None, _buffer(arrays["sha256"])])
    classes = table.facts["classes"]
    pairs = zip(arrays["tag_class"].tolist(), strings(table, "tag_name"), strict=True)
    values = pa.array([f"{classes[number]}:{name}" for number, name in pairs], pa.large_string())
    tags = pa.DictionaryArray.from_arrays(pa.array(arrays["tag.ids"]), values, safe=False)
    columns["tags"] = pa.LargeListArray.from_arrays(pa.array(_starts(arrays["tag.ends"])), tags)
    facts = {
        **table.facts,
        "tag_class": base64.b64encode(arrays["tag_class"].astype(np.int16).tobytes()).decode(),
        "problems": {name: strings(table, name) for name in PROBLEMS},
    }
    described = schema(facts, list(columns))
    return pa.RecordBatch.from_arrays(
        [columns[name].cast(described.field(name).type) for name in described.names], schema=described
    )


def _starts(ends: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    return np.concatenate([np.zeros(1, np.int64), ends])


def _buffer(array: npt.NDArray[Any]) -> pa.Buffer:
    return pa.py_buffer(np.ascontiguousarray(array))


def _strings(arrays: Mapping[str, npt.NDArray[Any]], name: str) -> pa.Array:
    starts = pa.py_buffer(_starts(arrays[f"{name}.ends"]))
    count = len(arrays[f"{name}.ends"])
    return pa.Array.from_buffers(pa.large_string(), count, [None, starts, _buffer(arrays[f"{name}.bytes"])])


def write_batch(path: Path, batch: pa.RecordBatch, most: int = 0) -> None:
    """Writes one record batch, or batches of at most so many rows, and waits for the disk as our writer does."""
    options = pa.ipc.IpcWriteOptions(unify_dictionaries=True)
    with path.open("wb") as file:
        with pa.ipc.new_file(file, batch.schema, options=options) as writer:
            writer.write_table(pa.Table.from_batches([batch]), max_chunksize=most or None)
        file.flush()
        os.fsync(file.fileno())


def write_columns(path: Path, columns: Mapping[str, Shaped], facts: Mapping[str, Any]) -> None:
    """What `index_file.write_table` does: a record batch is written when all its columns are there."""
    write_batch(path, record_batch(in_memory(columns, facts)))


def mapped_batches(path: str | os.PathLike[str]) -> tuple[list[pa.RecordBatch], _Mapping]:
    """The file's record batches without a copy, over a mapping whose pages can be let go of, as ours are.

    Raises InputError for a file that is none.
    """
    try:
        with open(path, "rb") as file:
            memory = _Mapping(file.fileno())
        reader = pa.ipc.open_file(pa.BufferReader(pa.py_buffer(memory.map)))
        return [reader.get_batch(number) for number in range(reader.num_record_batches)], memory
    except (pa.ArrowException, OSError, ValueError) as error:
        raise InputError(f"{path} is not an index ({error})") from error


def read_tables(path: str | os.PathLike[str]) -> list[Table]:
    """One table for each record batch, its arrays views of Arrow's buffers."""
    batches, memory = mapped_batches(path)
    shared = what_all_share(batches[0])
    return [table_of(batch, shared, os.fspath(path), memory) for batch in batches]


def read_arrow(path: str | os.PathLike[str], mapped: bool = True) -> Table:
    """What `index_file.read_table` does, of a file that is one record batch."""
    del mapped
    (table,) = read_tables(path)
    table.has_read(len(table))
    return table


Shared = tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]  # facts; names of tags, and the files left out


def what_all_share(batch: pa.RecordBatch) -> Shared:
    """What isn't one entry per image; of it the tags' names are copied, without their classes."""
    facts = json.loads(batch.schema.metadata[FACTS])
    tag_class = np.frombuffer(base64.b64decode(facts.pop("tag_class")), np.int16)
    ends, data = _ends_and_bytes(batch.column("tags").values.dictionary)
    prefix = np.array([len(name.encode()) + 1 for name in facts["classes"]], np.int64)[tag_class]
    starts = _starts(ends)[:-1] + prefix
    arrays = {
        "tag_class": tag_class,
        "tag_name.ends": np.cumsum(ends - starts),
        "tag_name.bytes": data[places_of(starts, ends)],
    }
    for name, texts in facts.pop("problems").items():
        arrays |= packed_strings(name, texts)
    return facts, arrays


def table_of(
    batch: pa.RecordBatch, shared: Shared | None = None, path: str = "", memory: _Mapping | None = None
) -> Table:
    """A record batch as the table that `Column`s read: the same arrays, without a copy but for the tags' names."""
    facts, shared_arrays = shared or what_all_share(batch)
    arrays = dict(shared_arrays)
    for name in batch.schema.names:
        column = batch.column(name)
        if name in TEXTS:
            arrays[f"{name}.ends"], arrays[f"{name}.bytes"] = _ends_and_bytes(column)
        elif name == "sha256":
            data = np.frombuffer(column.buffers()[1], np.uint8)
            arrays[name] = data.reshape(-1, 32)[column.offset : column.offset + len(column)]
        elif name != "tags":
            arrays[name] = column.to_numpy(zero_copy_only=True)
    tags: Any = batch.column("tags")
    arrays["tag.ends"] = tags.offsets.to_numpy()[1:]
    arrays["tag.ids"] = tags.values.indices.to_numpy()
    return Table(arrays, facts, path, memory)


def _ends_and_bytes(column: pa.Array) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint8]]:
    _, offsets, data = column.buffers()
    ends = np.frombuffer(offsets, np.int64)[1 + column.offset : 1 + column.offset + len(column)]
    return ends, np.frombuffer(data, np.uint8) if data is not None else np.empty(0, np.uint8)


def entry_by_scalars(batch: pa.RecordBatch, root: Path, row: int) -> tuple[object, ...]:
    """Id, place, caption and tags of one image by pyarrow's own scalars."""
    found: dict[str, list[str]] = {}
    for tag in batch.column("tags")[row].as_py():
        tag_class, _, name = tag.partition(":")
        found.setdefault(tag_class, []).append(name)
    tags = {tag_class: tuple(names) for tag_class, names in found.items()}
    identifier, name, caption = (batch.column(column)[row].as_py() for column in ("id", "name", "caption"))
    return identifier, root / name, caption, tags


def entries_by_take(batch: pa.RecordBatch, root: Path, rows: np.ndarray) -> list[tuple[object, ...]]:
    """The same of several images, taken at once."""
    part = batch.take(pa.array(rows))
    return [entry_by_scalars(part, root, row) for row in range(len(part))]


def merged_by_arrow(paths: Sequence[Path], out: Path, most: int = 0) -> None:
    """Merges the files of a data set's pieces with what pyarrow offers: concat, unify, sort and take.

    What it doesn't offer stays: which ids are one but for case or normal form. The pieces share their containers.
    """
    tables = [pa.ipc.open_file(pa.memory_map(str(path))).read_all() for path in paths]
    whole = pa.concat_tables([table.replace_schema_metadata() for table in tables])
    order = pc.call_function("sort_indices", [whole["id"]]).to_numpy()
    kept, _ = _distinct([table_of(batch) for table in tables for batch in table.to_batches()], order)
    one = whole.drop_columns(["fold"]).unify_dictionaries().combine_chunks()
    facts = json.loads(tables[0].schema.metadata[FACTS])
    numbers = {name: number for number, name in enumerate(facts["classes"])}
    names = one["tags"].chunk(0).values.dictionary.to_pylist()
    tag_class = np.array([numbers[name.partition(":")[0]] for name in names], np.int16)
    facts["tag_class"] = base64.b64encode(tag_class.tobytes()).decode()
    described = one.schema.with_metadata({FACTS: json.dumps(facts).encode()})
    with out.open("wb") as file:
        with pa.ipc.new_file(file, described) as writer:
            for start in range(0, len(kept), most or len(kept)):
                rows = pa.array(kept[start : start + (most or len(kept))])
                for batch in one.take(rows).combine_chunks().to_batches():
                    writer.write_batch(batch.replace_schema_metadata(described.metadata))
        file.flush()
        os.fsync(file.fileno())
