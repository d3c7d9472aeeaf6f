//! Files that pyarrow has written: `chats.parquet` with snappy and two row groups, `answers.parquet` with zstd and pages of the
//! second version.

use std::mem::take;
use std::path::{Path, PathBuf};

use abkd_data::{Columns, Example, Message, Role, read_columns, read_jsonl};

fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/parquet")
        .join(name)
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
fn messages_are_read() {
    let wanted = [
        example("Name the capital of France.", "", &["Paris"]),
        example("Be short.\n\nName a river.", "", &["Seine"]),
        example(
            "User: Hi\n\nAssistant: Hello\n\nUser: Wie heißt du? \u{1f600}",
            "",
            &["Ada"],
        ),
    ];
    let mut found = read_jsonl(&path("chats.parquet")).unwrap();
    let turns: Vec<Vec<Message>> = found.iter_mut().map(|e| take(&mut e.messages)).collect();
    assert_eq!(found, wanted);
    let said = |role, content: &str| Message {
        role,
        content: content.into(),
    };
    assert_eq!(turns[0], [said(Role::User, "Name the capital of France.")]);
    assert_eq!(turns[1][0], said(Role::System, "Be short."));
    assert_eq!(turns[2].len(), 3);
}

#[test]
fn columns_of_other_names_and_lists_of_answers_are_read() {
    let columns: Columns = "instruction=question,input=context,output=answers"
        .parse()
        .unwrap();
    let wanted = [
        example("one", "", &["1"]),
        example("two", "", &["2", "zwei"]),
        example("three", "c", &["3"]),
        example("four", "", &["4"]),
    ];
    assert_eq!(
        read_columns(&path("answers.parquet"), &columns).unwrap(),
        wanted
    );
}
