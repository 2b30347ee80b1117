//! What variables mean at one instruction of a stage, and words with their variables resolved.

use std::collections::{BTreeMap, HashMap};

use super::ENVIRONMENT_BYTES_MAX;
use crate::builder::expand::{Expanded, Lookup, Rules, expand};
use crate::builder::source::{Complaint, Span, Word};

/// What instructions need.
pub(super) const NO_RULES: Rules =
    Rules { keep_quotes: false, keep_escapes: false, ignore_quotes: false, keep_unset: false };

/// The variables of a stage.
#[derive(Clone, Debug, Default)]
pub(super) struct Scope {
    /// ENV, in the order of first definition.
    environment: Vec<(String, String)>,
    /// Where in it a name stands.
    places: HashMap<String, usize>,
    /// ARG; without a value when it was declared only.
    arguments: BTreeMap<String, Option<String>>,
    /// Bytes of all names and values.
    bytes: usize,
}

impl Scope {
    /// What a base image has.
    pub(super) fn of_base(environment: &[(String, String)]) -> Scope {
        let mut scope = Scope::default();
        for (name, value) in environment {
            scope.put(name, value.clone());
        }
        scope
    }

    /// The value of a variable: ENV wins over ARG.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        match self.places.get(name) {
            Some(&place) => Some(self.environment[place].1.as_str()),
            None => self.arguments.get(name).and_then(|value| value.as_deref()),
        }
    }

    /// Whether a name was declared as an argument.
    pub(super) fn is_argument(&self, name: &str) -> bool {
        self.arguments.contains_key(name)
    }

    /// The variables of the image.
    pub(super) fn environment(&self) -> &[(String, String)] {
        &self.environment
    }

    /// Bytes of all variables.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Sets a variable of the image.
    ///
    /// # Errors
    /// Variables that are too long together.
    pub(super) fn set(&mut self, span: Span, name: &str, value: String) -> Result<(), Complaint> {
        self.put(name, value);
        self.check(span)
    }

    fn put(&mut self, name: &str, value: String) {
        self.bytes += value.len();
        match self.places.get(name) {
            Some(&place) => {
                let old = std::mem::replace(&mut self.environment[place].1, value);
                self.bytes -= old.len();
            }
            None => {
                self.bytes += name.len() + 2;
                self.places.insert(name.to_owned(), self.environment.len());
                self.environment.push((name.to_owned(), value));
            }
        }
    }

    /// Declares an argument.
    ///
    /// # Errors
    /// Variables that are too long together.
    pub(super) fn declare(&mut self, span: Span, name: &str, value: Option<String>) -> Result<(), Complaint> {
        self.bytes += name.len() + value.as_ref().map_or(0, String::len);
        if let Some(old) = self.arguments.insert(name.to_owned(), value) {
            self.bytes -= name.len() + old.map_or(0, |old| old.len());
        }
        self.check(span)
    }

    fn check(&self, span: Span) -> Result<(), Complaint> {
        if self.bytes > ENVIRONMENT_BYTES_MAX {
            return Err(Complaint::new(span, format!("the environment has more than {ENVIRONMENT_BYTES_MAX} bytes")));
        }
        Ok(())
    }

    /// What a command of the stage has in its environment: ENV, and arguments that have a value.
    pub(super) fn for_commands(&self) -> Vec<(String, String)> {
        let mut environment = self.environment.clone();
        for (name, value) in &self.arguments {
            if let Some(value) = value.as_ref().filter(|_| !self.places.contains_key(name)) {
                environment.push((name.clone(), value.clone()));
            }
        }
        environment
    }

    /// All names, to suggest one of them.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.environment.iter().map(|(name, _)| name.as_str()).chain(self.arguments.keys().map(String::as_str))
    }
}

/// Resolves the variables of a word; what is wrong with it is told at its place.
///
/// # Errors
/// A word that cannot be expanded.
pub(super) fn expand_word<'a>(
    word: &Word,
    escape: char,
    rules: Rules,
    lookup: Lookup<'a>,
) -> Result<Expanded, Complaint> {
    expand(&word.value, escape, rules, lookup).map_err(|error| {
        let is_verbatim = word.span.end - word.span.start == word.value.len();
        // A place in a word that continuation lines break is that of the word.
        let start = if is_verbatim { word.span.start + error.offset.min(word.value.len()) } else { word.span.start };
        let span = Span { start: start.min(word.span.end), end: word.span.end };
        let span = if span.start == span.end { word.span } else { span };
        Complaint::new(span, error.message)
    })
}
