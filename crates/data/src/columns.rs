//! Which columns of a JSONL or Parquet file hold an example, and how a line or row in one of three usual forms is converted to
//! it.

use std::collections::BTreeMap;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::jsonl::{Fields, kind, listed};
use crate::{Example, Message, Role};

/// Valid forms of a line; the end of error messages about other lines.
pub(crate) const LINE: &str = r#"a line is {"instruction": "...", "input": "...", "output": "..."}, {"prompt": "...", "completion": "..."} or {"messages": [{"role": "user", "content": "..."}, ...]}; `columns` gives other names"#;

/// Columns of each form.
const FORMS: [&[&str]; 3] = [
    &["instruction", "input", "output"],
    &["prompt", "completion"],
    &["messages"],
];

/// Names of the columns that hold an example, where they differ from `instruction`, `input`, `output`, or `prompt`,
/// `completion`, or `messages`.
///
/// Without any names, the columns of each line decide which of the three forms it has.
///
/// ```
/// use abkd_data::Columns;
/// let columns: Columns = "instruction=question,output=answer".parse()?;
/// assert_eq!(columns.to_string(), "instruction=question,output=answer");
/// # Ok::<(), String>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(
    try_from = "BTreeMap<String, String>",
    into = "BTreeMap<String, String>"
)]
pub struct Columns(BTreeMap<String, String>);

impl TryFrom<BTreeMap<String, String>> for Columns {
    type Error = String;

    fn try_from(names: BTreeMap<String, String>) -> Result<Self, String> {
        let known = FORMS.concat();
        if let Some(key) = names.keys().find(|k| !known.contains(&k.as_str())) {
            let known = known.join("`, `");
            return Err(format!("unknown column `{key}`, expected one of `{known}`"));
        }
        if let Some((key, _)) = names.iter().find(|(_, name)| name.trim().is_empty()) {
            return Err(format!("`{key}`: the name of its column is empty"));
        }
        let forms = FORMS
            .iter()
            .filter(|form| names.keys().any(|k| form.contains(&k.as_str())));
        if forms.count() > 1 {
            return Err(format!(
                "the columns belong to several forms of a line; it has instruction, input and output, or prompt and \
                 completion, or messages ({} are given)",
                names.keys().cloned().collect::<Vec<_>>().join(", ")
            ));
        }
        Ok(Self(names))
    }
}

impl From<Columns> for BTreeMap<String, String> {
    fn from(columns: Columns) -> Self {
        columns.0
    }
}

impl FromStr for Columns {
    type Err = String;

    /// `instruction=question,output=answer`
    fn from_str(text: &str) -> Result<Self, String> {
        let mut names = BTreeMap::new();
        for pair in text.split(',') {
            let (key, name) = pair.split_once('=').ok_or_else(|| {
                format!("`{pair}`: wanted: COLUMN=NAME, e.g. instruction=question,output=answer")
            })?;
            if names
                .insert(key.trim().into(), name.trim().into())
                .is_some()
            {
                return Err(format!("`{}` is given twice", key.trim()));
            }
        }
        names.try_into()
    }
}

impl std::fmt::Display for Columns {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let pairs: Vec<String> = self
            .0
            .iter()
            .map(|(k, name)| format!("{k}={name}"))
            .collect();
        f.write_str(&pairs.join(","))
    }
}

impl Columns {
    /// Whether all columns have their usual names.
    pub fn is_default(&self) -> bool {
        self.0.is_empty()
    }

    fn name<'a>(&'a self, key: &'a str) -> &'a str {
        self.0.get(key).map_or(key, String::as_str)
    }

    /// The form of a line or table: that of the named columns, else the one that its columns match.
    fn form(&self, has: impl Fn(&str) -> bool) -> &'static [&'static str] {
        let [instruction, prompt, messages] = FORMS;
        if let Some(key) = self.0.keys().next() {
            let named = |form: &&&[&str]| form.contains(&key.as_str());
            return FORMS.iter().find(named).copied().unwrap_or(instruction);
        }
        if has("messages") {
            return messages;
        }
        match has("prompt") && !has("instruction") {
            true => prompt,
            false => instruction,
        }
    }

    /// The columns that are read of a table with the columns `there`: key and name of each. `input` may be missing, unless it
    /// is named.
    pub(crate) fn of_table<'a>(
        &'a self,
        there: &[&str],
    ) -> Result<Vec<(&'static str, &'a str)>, String> {
        let has = |name: &str| there.contains(&name);
        let mut read = Vec::new();
        for key in self.form(has) {
            let name = self.name(key);
            if has(name) {
                read.push((*key, name));
            } else if *key != "input" || self.0.contains_key(*key) {
                let all = listed(there.iter().copied(), "none");
                return Err(format!(
                    "no column `{name}`, it has {all}; examples are instruction, input and output, or prompt and completion, or \
                     messages; `columns` gives other names"
                ));
            }
        }
        Ok(read)
    }

    /// The example of a line or row.
    pub(crate) fn example(&self, fields: &Fields) -> Result<Example, String> {
        let form = self.form(|name| fields.has(name));
        let need =
            |key: &'static str| Ok::<_, String>((self.name(key), fields.need(self.name(key))?));
        if form == FORMS[2] {
            let (name, value) = need("messages")?;
            return conversation(value).map_err(|what| format!("`{name}`: {what}"));
        }
        let (asked, answer) = match form {
            ["prompt", ..] => ("prompt", "completion"),
            _ => ("instruction", "output"),
        };
        let (name, value) = need(answer)?;
        let outputs: Vec<String> = match value {
            Value::Array(items) => items
                .iter()
                .map(|v| text(name, v))
                .collect::<Result<_, _>>()?,
            value => vec![text(name, value)?],
        };
        if outputs.is_empty() {
            return Err(format!(
                "`{name}`: the list is empty, at least one reference is needed"
            ));
        }
        let (name, value) = need(asked)?;
        let instruction = text(name, value)?;
        let name = self.name("input");
        // Forms without an input ignore a column of that name.
        let input = if form.contains(&"input") {
            fields.get(name)?
        } else {
            None
        };
        Ok(Example {
            instruction,
            input: match input {
                None | Some(Value::Null) => String::new(),
                Some(value) => text(name, value)?,
            },
            outputs,
            messages: Vec::new(),
        })
    }
}

fn text(key: &str, value: &Value) -> Result<String, String> {
    match value {
        Value::String(s) => Ok(s.clone()),
        other => Err(format!("`{key}`: expected a string, found {}", kind(other))),
    }
}

/// The example of a conversation: its last message, the assistant's, is the answer to the messages before. In a single turn
/// the instruction is the user's message, after the system's if there is one; in several turns the user's and assistant's
/// messages start with their role.
fn conversation(value: &Value) -> Result<Example, String> {
    let Value::Array(items) = value else {
        return Err(format!(
            "expected a list of messages, found {}",
            kind(value)
        ));
    };
    let mut messages = Vec::new();
    for (index, item) in items.iter().enumerate() {
        let place = |what: String| format!("message {}: {what}", index + 1);
        let Value::Object(fields) = item else {
            return Err(place(format!("expected an object, found {}", kind(item))));
        };
        let field = |key: &str| match fields.get(key) {
            Some(value) => text(key, value).map_err(place),
            None => {
                let keys: Vec<&str> = fields.keys().take(8).map(String::as_str).collect();
                Err(place(format!(
                    "no `{key}` (it has {}); a message is {{\"role\": \"user\", \"content\": \"...\"}}",
                    keys.join(", ")
                )))
            }
        };
        let role = field("role")?;
        let Some(role) = Role::ALL.into_iter().find(|known| known.name() == role) else {
            return Err(place(format!(
                "unknown role {role:?}; known: {}",
                Role::ALL.map(Role::name).join(", ")
            )));
        };
        let content = field("content")?;
        messages.push(Message { role, content });
    }
    let Some(answer) = messages.pop().filter(|last| last.role == Role::Assistant) else {
        return Err("the last message must be the assistant's: it is the answer".into());
    };
    let says = |role: Role| messages.iter().any(|message| message.role == role);
    if !says(Role::User) {
        return Err("no message of the user before the assistant's last one".into());
    }
    let several = says(Role::Assistant);
    let parts: Vec<String> = messages
        .iter()
        .map(|Message { role, content }| match (several, role) {
            (true, Role::User) => format!("User: {content}"),
            (true, Role::Assistant) => format!("Assistant: {content}"),
            _ => content.clone(),
        })
        .collect();
    Ok(Example {
        instruction: parts.join("\n\n"),
        input: String::new(),
        outputs: vec![answer.content],
        messages,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(columns: &str, line: &str) -> Result<Example, String> {
        let columns = match columns {
            "" => Columns::default(),
            text => text.parse()?,
        };
        columns.example(&serde_json::from_str(line).unwrap())
    }

    fn example(instruction: &str, input: &str, output: &str) -> Example {
        Example {
            instruction: instruction.into(),
            input: input.into(),
            outputs: vec![output.into()],
            messages: Vec::new(),
        }
    }

    fn talk(example: Example, messages: &[(Role, &str)]) -> Example {
        let messages = messages.iter().map(|(role, content)| Message {
            role: *role,
            content: (*content).into(),
        });
        Example {
            messages: messages.collect(),
            ..example
        }
    }

    #[test]
    fn each_form_is_an_example() {
        for (columns, line, wanted) in [
            (
                "",
                r#"{"prompt":"a","completion":"b","input":"not one of it"}"#,
                example("a", "", "b"),
            ),
            (
                "",
                r#"{"instruction":"a","prompt":"x","input":"i","output":"b"}"#,
                example("a", "i", "b"),
            ),
            (
                "input=context,output=response",
                r#"{"instruction":"a","context":"i","response":"b"}"#,
                example("a", "i", "b"),
            ),
            (
                "prompt=q,completion=a",
                r#"{"q":"a","a":"b","messages":[]}"#,
                example("a", "", "b"),
            ),
            (
                "messages=chat",
                r#"{"chat":[{"role":"user","content":"a"},{"role":"assistant","content":"b"}]}"#,
                talk(example("a", "", "b"), &[(Role::User, "a")]),
            ),
            (
                "",
                r#"{"messages":[{"role":"system","content":"s"},{"role":"user","content":"a"},{"role":"assistant","content":"b"}]}"#,
                talk(
                    example("s\n\na", "", "b"),
                    &[(Role::System, "s"), (Role::User, "a")],
                ),
            ),
            (
                "",
                r#"{"messages":[{"role":"user","content":"a"},{"role":"assistant","content":"b"},{"role":"user","content":"c"},{"role":"assistant","content":"d"}]}"#,
                talk(
                    example("User: a\n\nAssistant: b\n\nUser: c", "", "d"),
                    &[(Role::User, "a"), (Role::Assistant, "b"), (Role::User, "c")],
                ),
            ),
        ] {
            assert_eq!(read(columns, line), Ok(wanted), "{columns} {line}");
        }
    }

    #[test]
    fn what_is_no_example_is_said_with_what_there_is() {
        for (columns, line, says) in [
            (
                "",
                r#"{"a":"b","c":"d"}"#,
                "missing field `output` (it has `a`, `c`)",
            ),
            (
                "output=answer",
                r#"{"instruction":"a","output":"b"}"#,
                "missing field `answer`",
            ),
            (
                "",
                r#"{"prompt":"a","output":"d"}"#,
                "missing field `completion`",
            ),
            (
                "",
                r#"{"prompt":"a","completion":3}"#,
                "`completion`: expected a string, found a number",
            ),
            ("", r#"{"messages":"a"}"#, "`messages`: expected a list"),
            (
                "",
                r#"{"messages":[]}"#,
                "last message must be the assistant's",
            ),
            ("", r#"{"messages":["a"]}"#, "message 1: expected an object"),
            (
                "",
                r#"{"messages":[{"from":"a","value":"b"}]}"#,
                "message 1: no `role` (it has from, value)",
            ),
            (
                "",
                r#"{"messages":[{"role":"tool","content":"b"}]}"#,
                "unknown role \"tool\"; known: system",
            ),
            (
                "",
                r#"{"messages":[{"role":"user","content":[]}]}"#,
                "`content`: expected a string, found a list",
            ),
            (
                "",
                r#"{"messages":[{"role":"assistant","content":"b"}]}"#,
                "no message of the user",
            ),
        ] {
            let said = read(columns, line).unwrap_err();
            assert!(said.contains(says), "{line}: {said}");
        }
    }

    #[test]
    fn names_that_are_none_are_refused() {
        for (text, says) in [
            ("instruction", "wanted: COLUMN=NAME"),
            (
                "question=instruction",
                "unknown column `question`, expected one of `instruction`",
            ),
            ("instruction=a,completion=b", "several forms"),
            ("instruction=a,instruction=b", "given twice"),
            ("instruction=", "is empty"),
        ] {
            let said = text.parse::<Columns>().unwrap_err();
            assert!(said.contains(says), "{text}: {said}");
        }
        assert!(serde_json::from_str::<Columns>(r#"{"outptu":"a"}"#).is_err());
    }
}
