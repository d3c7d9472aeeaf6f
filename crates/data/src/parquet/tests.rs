use std::path::PathBuf;

use ::parquet::basic::ZstdLevel;
use ::parquet::data_type::Int64Type;
use ::parquet::file::properties::{WriterProperties, WriterVersion};
use ::parquet::file::writer::SerializedFileWriter;
use ::parquet::schema::parser::parse_message_type;

use super::*;
use crate::{read_answered, read_columns, read_jsonl};

/// A column of a row group: its texts, and the definition and repetition level of each value.
type Texts<'a> = (&'a [&'a str], &'a [i16], &'a [i16]);

const PLAIN: &str = "message m { required binary instruction (STRING); optional binary input (STRING); required binary output (STRING); }";

/// A folder with a Parquet file.
struct Desk {
    dir: tempfile::TempDir,
}

impl Desk {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self { dir }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("x.parquet")
    }

    /// Writes a file of row groups with columns of text.
    fn write(&self, schema: &str, groups: &[&[Texts]], properties: WriterProperties) {
        let schema = Arc::new(parse_message_type(schema).unwrap());
        let file = File::create(self.path()).unwrap();
        let mut writer = SerializedFileWriter::new(file, schema, properties.into()).unwrap();
        for group in groups {
            let mut rows = writer.next_row_group().unwrap();
            for (texts, defined, repeated) in *group {
                let mut column = rows.next_column().unwrap().unwrap();
                let texts: Vec<ByteArray> = texts.iter().map(|text| (*text).into()).collect();
                let typed = column.typed::<ByteArrayType>();
                let levels = (!defined.is_empty()).then_some(*defined);
                let lists = (!repeated.is_empty()).then_some(*repeated);
                typed.write_batch(&texts, levels, lists).unwrap();
                column.close().unwrap();
            }
            rows.close().unwrap();
        }
        writer.close().unwrap();
    }

    /// Three examples in two row groups.
    fn three(&self, properties: WriterProperties) {
        let first: [Texts; 3] = [
            (&["a", "b"], &[], &[]),
            (&["i"], &[0, 1], &[]),
            (&["x", "y"], &[], &[]),
        ];
        let second: [Texts; 3] = [(&["c"], &[], &[]), (&[""], &[1], &[]), (&["z"], &[], &[])];
        self.write(PLAIN, &[&first, &second], properties);
    }

    fn read(&self, columns: &str) -> Result<Vec<Example>, String> {
        let columns = match columns {
            "" => Columns::default(),
            text => text.parse()?,
        };
        read_columns(&self.path(), &columns).map_err(|e| e.to_string())
    }

    fn refuses(&self, columns: &str, says: &[&str]) {
        let said = self.read(columns).unwrap_err();
        for what in [&["x.parquet: "], says].concat() {
            assert!(said.contains(what), "no `{what}` in: {said}");
        }
    }
}

fn properties(compression: Compression) -> WriterProperties {
    WriterProperties::builder()
        .set_compression(compression)
        .build()
}

fn example(instruction: &str, input: &str, outputs: &[&str]) -> Example {
    Example {
        instruction: instruction.into(),
        input: input.into(),
        outputs: outputs.iter().map(|text| (*text).into()).collect(),
        messages: Vec::new(),
    }
}

#[test]
fn the_same_examples_are_read_whatever_the_compression_the_pages_and_the_dictionary() {
    let wanted = [
        example("a", "", &["x"]),
        example("b", "i", &["y"]),
        example("c", "", &["z"]),
    ];
    for compression in [
        Compression::UNCOMPRESSED,
        Compression::SNAPPY,
        Compression::ZSTD(ZstdLevel::default()),
    ] {
        for dictionary in [true, false] {
            for version in [WriterVersion::PARQUET_1_0, WriterVersion::PARQUET_2_0] {
                let desk = Desk::new();
                let writer = WriterProperties::builder()
                    .set_compression(compression)
                    .set_writer_version(version)
                    .set_encoding(::parquet::basic::Encoding::PLAIN)
                    .set_dictionary_enabled(dictionary);
                desk.three(writer.build());
                assert_eq!(desk.read("").unwrap(), wanted);
            }
        }
    }
}

#[test]
fn a_file_of_lines_and_one_of_rows_give_the_same_examples() {
    let desk = Desk::new();
    desk.three(properties(Compression::SNAPPY));
    let lines = desk.dir.path().join("x.jsonl");
    let text = "{\"instruction\":\"a\",\"input\":null,\"output\":\"x\"}\n{\"instruction\":\"b\",\"input\":\"i\",\"output\":\"y\"}\n\
                {\"instruction\":\"c\",\"input\":\"\",\"output\":\"z\"}\n";
    std::fs::write(&lines, text).unwrap();
    assert_eq!(desk.read("").unwrap(), read_jsonl(&lines).unwrap());
}

#[test]
fn lists_are_read_across_batches_and_pages() {
    let desk = Desk::new();
    let schema = "message m { required binary prompt (STRING); optional group completion (LIST) { repeated group list { \
                  optional binary element (STRING); } } }";
    let count = 3 * ROWS + 7;
    let prompts: Vec<String> = (0..count).map(|i| i.to_string()).collect();
    let prompts: Vec<&str> = prompts.iter().map(String::as_str).collect();
    let answers: Vec<&str> = prompts.iter().flat_map(|p| [*p, "b", "c"]).collect();
    let defined = vec![3; 3 * count];
    let repeated: Vec<i16> = (0..count).flat_map(|_| [0, 1, 1]).collect();
    let writer = WriterProperties::builder()
        .set_data_page_row_count_limit(100)
        .set_write_batch_size(50);
    let columns: [Texts; 2] = [(&prompts, &[], &[]), (&answers, &defined, &repeated)];
    desk.write(schema, &[&columns], writer.build());
    let read = desk.read("").unwrap();
    assert_eq!(read.len(), count);
    for (row, read) in read.iter().enumerate() {
        let prompt = row.to_string();
        assert_eq!(*read, example(&prompt, "", &[&prompt, "b", "c"]));
    }
}

#[test]
fn older_lists_of_one_level_are_read() {
    let desk = Desk::new();
    let schema = "message m { required binary prompt (STRING); required group completion (LIST) { repeated binary array (STRING); } }";
    let columns: [Texts; 2] = [
        (&["p", "q"], &[], &[]),
        (&["a", "b", "c"], &[1, 1, 1], &[0, 1, 0]),
    ];
    desk.write(schema, &[&columns], properties(Compression::SNAPPY));
    let wanted = [example("p", "", &["a", "b"]), example("q", "", &["c"])];
    assert_eq!(desk.read("").unwrap(), wanted);
}

#[test]
fn a_null_or_an_empty_list_where_an_answer_must_be_names_its_row() {
    let schema = "message m { optional binary prompt (STRING); optional group completion (LIST) { repeated group list { \
                  optional binary element (STRING); } } }";
    for (defined, repeated, prompts, says) in [
        (
            &[3, 0][..],
            &[0, 0][..],
            &[1, 1][..],
            "`completion`: expected a string, found null",
        ),
        (&[3, 1], &[0, 0], &[1, 1], "the list is empty"),
        (
            &[3, 3, 2],
            &[0, 0, 1],
            &[1, 1],
            "`completion`: expected a string, found null",
        ),
        (
            &[3, 3],
            &[0, 0],
            &[1, 0],
            "`prompt`: expected a string, found null",
        ),
    ] {
        let desk = Desk::new();
        let texts = ["a"; 3];
        let answers = defined.iter().filter(|d| **d == 3).count();
        let asked = prompts.iter().filter(|d| **d == 1).count();
        let columns: [Texts; 2] = [
            (&texts[..asked], prompts, &[]),
            (&texts[..answers], defined, repeated),
        ];
        desk.write(schema, &[&columns], properties(Compression::UNCOMPRESSED));
        desk.refuses("", &["row 2: ", says]);
    }
}

#[test]
fn the_row_is_counted_over_all_row_groups() {
    let desk = Desk::new();
    let first: [Texts; 2] = [(&["a", "b"], &[], &[]), (&["x", "y"], &[1, 1], &[])];
    let second: [Texts; 2] = [(&["c"], &[], &[]), (&[], &[0], &[])];
    let schema =
        "message m { required binary instruction (STRING); optional binary output (STRING); }";
    desk.write(schema, &[&first, &second], properties(Compression::SNAPPY));
    desk.refuses("", &["row 3: `output`: expected a string, found null"]);
}

#[test]
fn an_empty_answer_is_refused_where_it_may_not_be() {
    let desk = Desk::new();
    let columns: [Texts; 3] = [(&["a"], &[], &[]), (&[], &[0], &[]), (&[" "], &[], &[])];
    desk.write(PLAIN, &[&columns], properties(Compression::SNAPPY));
    assert_eq!(desk.read("").unwrap().len(), 1);
    let said = read_answered(&desk.path()).unwrap_err().to_string();
    assert!(said.contains("row 1: `output` is empty"), "{said}");
}

#[test]
fn columns_that_are_missing_or_of_another_type_are_named() {
    let desk = Desk::new();
    desk.three(properties(Compression::SNAPPY));
    let has = "it has `instruction`, `input`, `output`";
    desk.refuses("output=answer", &["no column `answer`", has, "`columns`"]);
    desk.refuses("input=context", &["no column `context`", has]);
    desk.refuses(
        "messages=output",
        &[
            "column `output`: a string in each of 2 row groups",
            "a list of structs",
        ],
    );
    for (kind, says) in [
        (
            "required binary output",
            "bytes that are not marked as text",
        ),
        (
            "required group output { required binary a (STRING); }",
            "a struct of `a`",
        ),
        (
            "optional group output (LIST) { repeated group list { required group element (LIST) { repeated group list { required binary element (STRING); } } } }",
            "a list of (a list of (a string))",
        ),
    ] {
        let schema = format!("message m {{ required binary instruction (STRING); {kind} }}");
        let schema = schema.replace("output }", "output; }");
        desk.write(&schema, &[], properties(Compression::SNAPPY));
        desk.refuses(
            "",
            &[
                "column `output`: ",
                says,
                "a string or a list of strings belongs there",
            ],
        );
    }
}

#[test]
fn a_column_of_numbers_is_named_with_its_type() {
    let desk = Desk::new();
    let schema = "message m { required int64 instruction; }";
    let schema = Arc::new(parse_message_type(schema).unwrap());
    let file = File::create(desk.path()).unwrap();
    let mut writer = SerializedFileWriter::new(file, schema, Default::default()).unwrap();
    let mut rows = writer.next_row_group().unwrap();
    let mut column = rows.next_column().unwrap().unwrap();
    column
        .typed::<Int64Type>()
        .write_batch(&[1], None, None)
        .unwrap();
    column.close().unwrap();
    rows.close().unwrap();
    writer.close().unwrap();
    desk.refuses(
        "instruction=instruction,output=instruction",
        &["column `instruction`: INT64 in the only row group"],
    );
}

#[test]
fn what_is_no_whole_parquet_file_is_told() {
    let desk = Desk::new();
    desk.three(properties(Compression::SNAPPY));
    let whole = std::fs::read(desk.path()).unwrap();
    for length in 0..whole.len() {
        std::fs::write(desk.path(), &whole[..length]).unwrap();
        let says = if length < 4 {
            "not a Parquet file"
        } else {
            "a truncated Parquet file"
        };
        desk.refuses("", &[says]);
    }
    let mut footer = whole.clone();
    let at = whole.len() - 5;
    footer[at] = 0x7f;
    std::fs::write(desk.path(), &footer).unwrap();
    desk.refuses("", &["footer"]);
    for (bytes, says) in [
        (
            &b"{\"instruction\":\"a\",\"output\":\"b\"}\n"[..],
            "ends with .jsonl",
        ),
        (b"PARE0123456789PARE", "encrypted"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n",
            "git-lfs pointer",
        ),
    ] {
        std::fs::write(desk.path(), bytes).unwrap();
        desk.refuses("", &[says]);
    }
    let lines = desk.dir.path().join("x.jsonl");
    std::fs::write(&lines, &whole).unwrap();
    let said = read_jsonl(&lines).unwrap_err().to_string();
    assert!(said.contains("a name that ends with .parquet"), "{said}");
}

#[test]
fn a_file_without_rows_holds_no_example() {
    let desk = Desk::new();
    desk.write(PLAIN, &[], properties(Compression::SNAPPY));
    desk.refuses("", &["no row"]);
}

#[test]
fn encodings_whose_sizes_the_library_trusts_are_refused() {
    let desk = Desk::new();
    let writer = WriterProperties::builder()
        .set_dictionary_enabled(false)
        .set_encoding(::parquet::basic::Encoding::DELTA_BYTE_ARRAY);
    desk.three(writer.build());
    desk.refuses(
        "",
        &["column `instruction`, row group 1: ", "DELTA_BYTE_ARRAY"],
    );
}
