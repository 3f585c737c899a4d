//! Regular expressions over names: of permissions and of policies.

use regex_lite::Regex;

const ANYTHING: &str = ".*";

/// A regular expression over names, searched for anywhere in the name as RabbitMQ does.
#[derive(Clone, Debug)]
pub(super) struct Pattern {
    text: String,
    /// `None` for the one that matches everything.
    regex: Option<Regex>,
}

impl Pattern {
    /// The pattern of a permission: an empty one matches the empty name only.
    ///
    /// # Errors
    /// A sentence when it is no regular expression.
    pub(super) fn of_permission(text: &str) -> Result<Pattern, String> {
        if text.is_empty() {
            return Ok(Pattern { text: String::new(), regex: Regex::new("^$").ok() });
        }
        Pattern::new(text)
    }

    /// Any other pattern.
    ///
    /// # Errors
    /// A sentence when it is no regular expression.
    pub(super) fn new(text: &str) -> Result<Pattern, String> {
        let regex = match text {
            ANYTHING | "" => None,
            _ => Some(Regex::new(text).map_err(|error| format!("'{text}' is not a regular expression: {error}"))?),
        };
        Ok(Pattern { text: text.to_owned(), regex })
    }

    pub(super) fn everything() -> Pattern {
        Pattern { text: ANYTHING.to_owned(), regex: None }
    }

    pub(super) fn text(&self) -> &str {
        &self.text
    }

    pub(super) fn matches(&self, name: &str) -> bool {
        self.regex.as_ref().is_none_or(|regex| regex.is_match(name))
    }
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Pattern) -> bool {
        self.text == other.text
    }
}

impl Eq for Pattern {}
