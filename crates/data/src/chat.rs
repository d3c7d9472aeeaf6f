//! Chat templates: the Jinja text beside a tokenizer that renders a conversation, rendered as `transformers` renders it.
//!
//! The text is `chat_template.jinja`, else `chat_template` of `tokenizer_config.json`: a string, or a list of names and
//! templates of which `default` is taken. A template sees `messages`, `add_generation_prompt`, `tools` and `documents`
//! (both none), the special tokens of `tokenizer_config.json` and `special_tokens_map.json`, `raise_exception`,
//! `strftime_now` and `tojson`. It writes the special tokens of its prompts itself.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use abkd_host::files;
use minijinja::syntax::SyntaxConfig;
use minijinja::{AutoEscape, Environment, ErrorKind, Value as Jinja};
use serde_json::{Map, Value};

use crate::{Error, Message};

mod date;
mod generation;
mod python;

pub use date::Date;

const CONFIG: &str = "tokenizer_config.json";
const MAP: &str = "special_tokens_map.json";
const FILE: &str = "chat_template.jinja";
/// Special tokens that a tokenizer class of `transformers` may have without any file that names them.
const TOKENS: [&str; 7] = [
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
];
/// Name of the template in its environment.
const NAME: &str = "chat";
const REMEDY: &str = "mend it there, put another one into chat_template.jinja beside it, or take the paper's template";

/// The chat template of a tokenizer.
pub struct ChatTemplate {
    env: Environment<'static>,
    /// The file that holds the text.
    path: PathBuf,
    text: String,
    /// Special tokens by their names in the template.
    tokens: BTreeMap<String, Value>,
    date: Option<Date>,
}

impl ChatTemplate {
    /// Reads the template of a tokenizer's folder. `date` is the date that the template may write; the time is 0:00.
    ///
    /// # Errors
    ///
    /// A folder without a template, a file that cannot be read, a template that is not valid or uses a special token
    /// that no file names, a date for a template that writes none.
    pub fn read(folder: &Path, date: Option<Date>) -> Result<Self, Error> {
        let [config, map, file] = [CONFIG, MAP, FILE].map(|name| folder.join(name));
        let fields = object(&config)?;
        let inside = match &fields {
            Some(fields) => default_of(fields).map_err(|what| refuse(&config, what))?,
            None => None,
        };
        // As in transformers, the file wins.
        let found = match text_of(&file)? {
            Some(text) => Some((file, text)),
            None => inside.map(|text| (config.clone(), text)),
        };
        let Some((path, text)) = found else {
            return Err(refuse(
                &config,
                format!(
                    "no `chat_template`, and no {FILE} beside it: the tokenizer has no chat template; put the model's {FILE} into \
                     the folder, or take the paper's template"
                ),
            ));
        };
        let fields = fields.unwrap_or_default();
        let mut named = fields.clone();
        // Files from before transformers 4.34: the map takes precedence.
        if !fields.contains_key("added_tokens_decoder") {
            named.extend(object(&map)?.unwrap_or_default());
        }
        let tokens = tokens(&named).map_err(|what| refuse(&config, what))?;
        let template = Self::new(path, text, tokens, date)?;
        let used = template.used();
        // Other classes may have a default for a token that no file names.
        let plain = fields
            .get("tokenizer_class")
            .is_some_and(|class| class == "PreTrainedTokenizerFast");
        let absent = |name: &&&str| used.contains(**name) && !named.contains_key(**name);
        if let Some(name) = TOKENS.iter().find(absent).filter(|_| !plain) {
            return Err(refuse(
                &config,
                format!(
                    "no `{name}`, and the chat template uses it: write {{\"{name}\": \"...\"}} into this file, or null if the \
                     tokenizer has none"
                ),
            ));
        }
        if let Some(date) = date.filter(|_| !used.contains("strftime_now")) {
            return Err(refuse(
                &template.path,
                format!("its chat template writes no date; leave the date ({date}) out"),
            ));
        }
        Ok(template)
    }

    fn new(
        path: PathBuf,
        text: String,
        tokens: BTreeMap<String, Value>,
        date: Option<Date>,
    ) -> Result<Self, Error> {
        let mut template = Self {
            env: environment(date),
            path,
            text,
            tokens,
            date,
        };
        // Jinja2 reads all line ends as a line feed.
        let text = template.text.replace("\r\n", "\n").replace('\r', "\n");
        template
            .env
            .add_template_owned(NAME, generation::as_blocks(&text))
            .map_err(|e| template.blame(&e))?;
        Ok(template)
    }

    /// Names that the template uses and does not set.
    fn used(&self) -> std::collections::HashSet<String> {
        let template = self.env.get_template(NAME);
        template.map_or_else(|_| Default::default(), |t| t.undeclared_variables(false))
    }

    /// The text of a conversation; with `add_generation_prompt` it ends where an answer of the assistant begins.
    ///
    /// # Errors
    ///
    /// A conversation that the template refuses, or a template that fails; the error names file and line.
    pub fn render(
        &self,
        messages: &[Message],
        add_generation_prompt: bool,
    ) -> Result<String, Error> {
        let messages = messages.iter().map(|message| {
            minijinja::context! { role => message.role.name(), content => &message.content }
        });
        let own = [
            ("messages", messages.collect()),
            ("add_generation_prompt", add_generation_prompt.into()),
            ("tools", ().into()),
            ("documents", ().into()),
        ];
        let tokens = self.tokens.iter();
        let tokens = tokens.map(|(name, token)| (name.as_str(), jinja(token)));
        // Of two values of a name the last one counts.
        let names: BTreeMap<&str, Jinja> = tokens.chain(own).collect();
        self.env
            .get_template(NAME)
            .and_then(|template| template.render(names))
            .map_err(|e| self.blame(&e))
    }

    /// The file that holds the template.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The template's text.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The date that the template may write.
    pub fn date(&self) -> Option<Date> {
        self.date
    }

    /// SHA-256 of all that a rendering depends on besides the conversation, in hexadecimal.
    pub fn hash(&self) -> String {
        let all = serde_json::json!([self.text, self.tokens, self.date]);
        files::sha256(all.to_string().as_bytes())
    }

    /// The error of the file's line.
    fn blame(&self, error: &minijinja::Error) -> Error {
        // The innermost error knows the line.
        let mut at = error;
        let mut refused = false;
        while let Some(source) = std::error::Error::source(at) {
            refused |= source.is::<python::Refused>();
            match source.downcast_ref::<minijinja::Error>() {
                Some(inner) => at = inner,
                None => break,
            }
        }
        let detail = at.detail().unwrap_or_default();
        let what = match (refused, at.kind()) {
            (true, _) => format!("the chat template refuses this conversation: {detail}"),
            (false, ErrorKind::SyntaxError) => {
                format!("the chat template cannot be read ({detail}); {REMEDY}")
            }
            (false, kind) => {
                let colon = if detail.is_empty() { "" } else { ": " };
                format!("the chat template fails ({kind}{colon}{detail}); {REMEDY}")
            }
        };
        let line = at.line().or(error.line()).unwrap_or(1);
        let json = self.path.ends_with(CONFIG);
        Error::Template {
            place: match json {
                // A line of the text, which JSON has in one line.
                true => format!("{}: `chat_template`, line {line}", self.path.display()),
                false => format!("{}:{line}", self.path.display()),
            },
            what,
        }
    }
}

/// Jinja as `transformers` sets it up.
fn environment(date: Option<Date>) -> Environment<'static> {
    let mut env = Environment::new();
    let mut syntax = SyntaxConfig::builder();
    syntax.trim_blocks(true).lstrip_blocks(true);
    env.set_syntax(syntax.build().expect("the delimiters are the usual ones"));
    env.set_auto_escape_callback(|_| AutoEscape::None);
    env.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    env.set_formatter(python::print);
    env.add_filter("string", python::string);
    env.add_filter("tojson", python::tojson);
    env.add_test("iterable", python::is_iterable);
    env.add_test("sequence", python::is_sequence);
    env.add_function("raise_exception", python::raise_exception);
    env.add_function("strftime_now", move |format: &str| {
        let other = |what: String| minijinja::Error::new(ErrorKind::InvalidOperation, what);
        let date = date.ok_or_else(|| {
            other("it writes today's date, and prompts must not change from day to day: give one with --date YYYY-MM-DD ([data] date in a profile)".into())
        })?;
        date.format(format).map_err(other)
    });
    env
}

fn refuse(path: &Path, what: String) -> Error {
    Error::Template {
        place: path.display().to_string(),
        what,
    }
}

/// The text of a file; `None` if the file is missing.
fn text_of(path: &Path) -> Result<Option<String>, Error> {
    let bytes = match files::read(path, files::TEXT_LIMIT) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(Error::io(path)(e)),
    };
    String::from_utf8(bytes).map(Some).map_err(|e| {
        refuse(
            path,
            format!("not UTF-8 ({e}); convert the file with `iconv -t UTF-8`"),
        )
    })
}

/// The fields of a JSON file; `None` if the file is missing.
fn object(path: &Path) -> Result<Option<Map<String, Value>>, Error> {
    let Some(text) = text_of(path)? else {
        return Ok(None);
    };
    let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
    let fields = serde_json::from_str(text);
    fields.map(Some).map_err(|e| {
        let what = "the chat template and its special tokens are read from this file";
        refuse(path, format!("it is no JSON object ({e}); {what}: mend it"))
    })
}

/// The template in the fields of `tokenizer_config.json`.
fn default_of(fields: &Map<String, Value>) -> Result<Option<String>, String> {
    let wanted = "`chat_template` is neither a string nor a list of {\"name\": \"...\", \"template\": \"...\"}";
    let items = match fields.get("chat_template") {
        None | Some(Value::Null) => return Ok(None),
        Some(Value::String(text)) => return Ok(Some(text.clone())),
        Some(Value::Array(items)) => items,
        Some(_) => return Err(wanted.into()),
    };
    let mut names = Vec::new();
    let mut found = None;
    for item in items {
        let (Value::String(name), Value::String(text)) = (&item["name"], &item["template"]) else {
            return Err(wanted.into());
        };
        names.push(name.as_str());
        // Of two with a name the last one counts, as in a dict of Python.
        if name == "default" {
            found = Some(text.clone());
        }
    }
    match found {
        Some(text) => Ok(Some(text)),
        None => Err(format!(
            "`chat_template` has no template of the name \"default\" (it has {}); put the right one into {FILE} beside it",
            names.join(", ")
        )),
    }
}

/// The special tokens that fields name, as `special_tokens_map` of a tokenizer in `transformers`; those that are null or
/// empty are undefined.
fn tokens(fields: &Map<String, Value>) -> Result<BTreeMap<String, Value>, String> {
    let mut all = BTreeMap::new();
    let mut add = |name: &str, value: &Value| -> Result<(), String> {
        if let Some(text) = token(name, value)? {
            all.insert(name.to_owned(), text.into());
        }
        Ok(())
    };
    for name in TOKENS {
        add(name, fields.get(name).unwrap_or(&Value::Null))?;
    }
    if let Some(Value::Object(extra)) = fields.get("extra_special_tokens") {
        extra
            .iter()
            .try_for_each(|(name, value)| add(name, value))?;
    }
    let name = "additional_special_tokens";
    if let Some(Value::Array(items)) = fields.get(name) {
        let texts = items.iter().map(|item| token(name, item));
        let texts: Vec<Option<String>> = texts.collect::<Result<_, _>>()?;
        if !texts.is_empty() {
            all.insert(name.into(), texts.into_iter().flatten().collect());
        }
    }
    Ok(all)
}

/// A token, or a list of them, as a template sees it.
fn jinja(token: &Value) -> Jinja {
    match token {
        Value::Array(items) => items.iter().map(jinja).collect(),
        token => token.as_str().unwrap_or_default().into(),
    }
}

/// The text of a token; in an object it is `content`.
fn token(name: &str, value: &Value) -> Result<Option<String>, String> {
    let text = match value {
        Value::Object(token) => token.get("content").unwrap_or(&Value::Bool(false)),
        value => value,
    };
    match text {
        Value::Null => Ok(None),
        Value::String(text) => Ok(Some(text.clone()).filter(|text| !text.is_empty())),
        _ => Err(format!(
            "`{name}` is neither a string nor an object with `content`; mend it: the chat template may write it"
        )),
    }
}

#[cfg(test)]
mod tests;
