//! `{% generation %}` marks what an assistant says. `transformers` renders it as a block of its own; here it is read as
//! `{% with %}`, which renders alike and keeps lines and white space.

/// The template with blocks that are known here.
pub(super) fn as_blocks(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest
        .find("{{")
        .into_iter()
        .chain(rest.find("{%"))
        .chain(rest.find("{#"))
        .min()
    {
        let (before, tag) = rest.split_at(at);
        out += before;
        let length = match &tag[..2] {
            "{#" => tag.find("#}").map(|end| end + 2),
            "{{" => end_of(tag, "}}"),
            _ => end_of(tag, "%}"),
        };
        // A tag without an end is an error, which names its line.
        let Some(length) = length else {
            rest = tag;
            break;
        };
        let (tag, after) = tag.split_at(length);
        rest = after;
        match word(tag) {
            Some("generation") => out += &tag.replacen("generation", "with", 1),
            Some("endgeneration") => out += &tag.replacen("endgeneration", "endwith", 1),
            Some("raw") => {
                out += tag;
                let end = end_of_raw(rest);
                out += &rest[..end];
                rest = &rest[end..];
            }
            _ => out += tag,
        }
    }
    out + rest
}

/// The first word of a block's tag.
fn word(tag: &str) -> Option<&str> {
    let inner = tag.strip_prefix("{%")?.trim_start_matches(['-', '+']);
    let inner = inner.trim_start();
    let end = inner.find(|c: char| !c.is_alphanumeric() && c != '_');
    Some(&inner[..end.unwrap_or(inner.len())])
}

/// The length of a tag, whose texts in quotes may hold anything.
fn end_of(tag: &str, close: &str) -> Option<usize> {
    let mut quote = None;
    let mut escaped = false;
    for (at, c) in tag.char_indices().skip(2) {
        match quote {
            Some(_) if escaped => escaped = false,
            Some(_) if c == '\\' => escaped = true,
            Some(q) if c == q => quote = None,
            Some(_) => {}
            None if c == '"' || c == '\'' => quote = Some(c),
            None if tag[at..].starts_with(close) => return Some(at + close.len()),
            None => {}
        }
    }
    None
}

/// Where the tag that ends a raw block begins.
fn end_of_raw(text: &str) -> usize {
    let tags = text.match_indices("{%").map(|(at, _)| at);
    let mut ends = tags.filter(|at| word(&text[*at..]) == Some("endraw"));
    ends.next().unwrap_or(text.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_tags_of_generation_change_and_keep_their_white_space() {
        for (text, wanted) in [
            (
                "a{%- generation -%}b{% endgeneration %}",
                "a{%- with -%}b{% endwith %}",
            ),
            ("{{ '{% generation %}' }}", "{{ '{% generation %}' }}"),
            (
                "{{ 'it\\'s }} {% generation %}' }}",
                "{{ 'it\\'s }} {% generation %}' }}",
            ),
            (
                "{# {% generation %} #}{%generation%}",
                "{# {% generation %} #}{%with%}",
            ),
            (
                "{% raw %}{% generation %}{% endraw %}{%+ generation %}",
                "{% raw %}{% generation %}{% endraw %}{%+ with %}",
            ),
            ("{% generations %}", "{% generations %}"),
            ("{% if x == '%}' %}é{% endif", "{% if x == '%}' %}é{% endif"),
        ] {
            assert_eq!(as_blocks(text), wanted);
        }
    }
}
