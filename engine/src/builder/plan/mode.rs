//! `--chmod`: an octal mode, or symbolic changes of one.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A mode as `chmod` takes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum Mode {
    /// All bits.
    Octal(u32),
    /// Changes, as in `u=rwX,go=rX`; checked to be some.
    Symbolic(String),
}

/// Why a text is no mode.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no mode\nhint: as in 755 or u=rwX,go=rX")]
pub struct ModeError(String);

impl Mode {
    /// Reads a mode.
    ///
    /// # Errors
    /// Any other text.
    pub fn parse(text: &str) -> Result<Mode, ModeError> {
        let refuse = || ModeError(text.chars().take(80).collect());
        if text.starts_with(|c: char| c.is_ascii_digit()) {
            let bits = u32::from_str_radix(text, 8).map_err(|_| refuse())?;
            return if bits <= 0o7777 { Ok(Mode::Octal(bits)) } else { Err(refuse()) };
        }
        if !text.is_empty() && text.split(',').all(is_clause) {
            Ok(Mode::Symbolic(text.to_owned()))
        } else {
            Err(refuse())
        }
    }
}

/// `u=rwX`, `go-w+x`, `+x`.
fn is_clause(clause: &str) -> bool {
    let actions = clause.trim_start_matches(['u', 'g', 'o', 'a']);
    let mut rest = actions;
    while let Some(after) = rest.strip_prefix(['+', '-', '=']) {
        let is_copy = after.starts_with(['u', 'g', 'o']);
        rest = if is_copy { &after[1..] } else { after.trim_start_matches(['r', 'w', 'x', 'X', 's', 't']) };
    }
    !actions.is_empty() && rest.is_empty()
}

impl fmt::Display for Mode {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Mode::Octal(bits) => write!(formatter, "{bits:04o}"),
            Mode::Symbolic(text) => formatter.write_str(text),
        }
    }
}

impl From<Mode> for String {
    fn from(mode: Mode) -> String {
        mode.to_string()
    }
}

impl TryFrom<String> for Mode {
    type Error = ModeError;
    fn try_from(text: String) -> Result<Mode, ModeError> {
        Mode::parse(&text)
    }
}
