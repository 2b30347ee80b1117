//! The flags of one instruction: taken one after the other by what knows them; what is left over is unknown.

use crate::builder::dockerfile::instruction::Flag;
use crate::builder::source::{Complaint, Spanned, Word};
use crate::builder::suggest::closest;

/// Flags that nobody asked for yet, and the names that were asked for.
pub(super) struct Flags {
    left: Vec<Flag>,
    known: Vec<&'static str>,
}

impl Flags {
    pub(super) fn new(flags: Vec<Flag>) -> Flags {
        Flags { left: flags, known: Vec::new() }
    }

    fn take(&mut self, name: &str) -> Vec<Flag> {
        let (taken, left) = std::mem::take(&mut self.left).into_iter().partition(|flag| flag.name.value == name);
        self.left = left;
        taken
    }

    /// A flag with a value that may come more than once.
    ///
    /// # Errors
    /// One without a value.
    pub(super) fn texts(&mut self, name: &'static str) -> Result<Vec<Word>, Complaint> {
        self.known.push(name);
        let value = |flag: Flag| flag.value.ok_or_else(|| no_value(&flag.name, name));
        self.take(name).into_iter().map(value).collect()
    }

    /// A flag with a value.
    ///
    /// # Errors
    /// One that comes twice or has no value.
    pub(super) fn text(&mut self, name: &'static str) -> Result<Option<Word>, Complaint> {
        let mut values = self.texts(name)?;
        if let Some(second) = values.get(1) {
            return Err(twice(second.span, name));
        }
        Ok(values.pop())
    }

    /// A flag that is on or off.
    ///
    /// # Errors
    /// One that comes twice or has another value than true or false.
    pub(super) fn switch(&mut self, name: &'static str) -> Result<Option<Spanned<bool>>, Complaint> {
        self.known.push(name);
        let mut flags = self.take(name);
        if let Some(second) = flags.get(1) {
            return Err(twice(second.name.span, name));
        }
        let Some(flag) = flags.pop() else { return Ok(None) };
        let span = flag.name.span;
        match flag.value.map(|value| value.value.to_ascii_lowercase()).as_deref() {
            None | Some("true") => Ok(Some(Spanned::new(true, span))),
            Some("false") => Ok(Some(Spanned::new(false, span))),
            Some("") => Err(no_value(&flag.name, name)),
            Some(_) => Err(Complaint::new(span, format!("--{name} is either true or false"))),
        }
    }

    /// To be called when all that is known was taken.
    ///
    /// # Errors
    /// A flag that is left.
    pub(super) fn check_empty(&self) -> Result<(), Complaint> {
        let Some(flag) = self.left.first() else { return Ok(()) };
        let name: String = flag.name.value.chars().take(60).collect();
        let complaint = Complaint::new(flag.name.span, format!("unknown flag --{name}"));
        Err(match closest(&name, self.known.iter().copied()) {
            Some(meant) => complaint.hint(format!("did you mean --{meant}?")),
            None if self.known.is_empty() => complaint.hint("this instruction has no flags"),
            None => complaint.hint(format!("there are --{}", self.known.join(", --"))),
        })
    }
}

fn no_value(name: &Word, flag: &str) -> Complaint {
    Complaint::new(name.span, format!("--{flag} needs a value")).hint(format!("as in --{flag}=VALUE"))
}

fn twice(span: crate::builder::source::Span, flag: &str) -> Complaint {
    Complaint::new(span, format!("--{flag} comes twice"))
}
