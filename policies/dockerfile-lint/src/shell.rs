//! Commands of a shell, as far as a rule needs them: which words each has, and what is piped into what.

/// The pipelines of a script: each a row of commands, each a row of words. Quotes are taken off; nothing is expanded.
pub(crate) fn pipelines(script: &str) -> Vec<Vec<Vec<String>>> {
    let mut reader = Reader::default();
    let mut chars = script.chars().peekable();
    while let Some(c) = chars.next() {
        match (reader.quote, c) {
            (Some(quote), c) if c == quote => reader.quote = None,
            (Some('\''), c) => reader.put(c),
            (_, '\\') => match chars.next() {
                Some('\n') | None => {}
                Some(escaped) => reader.put(escaped),
            },
            (Some(_), c) => reader.put(c),
            (None, '\'' | '"') => {
                reader.quote = Some(c);
                reader.has_word = true;
            }
            (None, '#') if !reader.has_word => while chars.next_if(|c| *c != '\n').is_some() {},
            (None, '|') if chars.peek() == Some(&'|') => {
                chars.next();
                reader.end_pipeline();
            }
            (None, '|') => {
                chars.next_if_eq(&'&');
                reader.end_command();
            }
            (None, ';' | '&' | '\n' | '(' | ')' | '`') => reader.end_pipeline(),
            (None, c) if c.is_whitespace() => reader.end_word(),
            (None, c) => reader.put(c),
        }
    }
    reader.end_pipeline();
    reader.pipelines
}

/// The program of a command and what follows it, without assignments and words that only start another program.
pub(crate) fn program(command: &[String]) -> Option<(&str, &[String])> {
    let is_before = |word: &String| {
        let is_assignment = word.split_once('=').is_some_and(|(name, _)| is_name(name));
        is_assignment
            || ["sudo", "exec", "env", "then", "do", "else", "if", "!", "{", "command"].contains(&word.as_str())
    };
    let start = command.iter().position(|word| !is_before(word) && !word.starts_with('-'))?;
    let name = command[start].rsplit('/').next().unwrap_or_default();
    Some((name, &command[start + 1..]))
}

fn is_name(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

#[derive(Default)]
struct Reader {
    quote: Option<char>,
    word: String,
    has_word: bool,
    command: Vec<String>,
    pipeline: Vec<Vec<String>>,
    pipelines: Vec<Vec<Vec<String>>>,
}

impl Reader {
    fn put(&mut self, c: char) {
        self.word.push(c);
        self.has_word = true;
    }

    fn end_word(&mut self) {
        if std::mem::take(&mut self.has_word) {
            self.command.push(std::mem::take(&mut self.word));
        }
    }

    fn end_command(&mut self) {
        self.end_word();
        if !self.command.is_empty() {
            self.pipeline.push(std::mem::take(&mut self.command));
        }
    }

    fn end_pipeline(&mut self) {
        self.end_command();
        if !self.pipeline.is_empty() {
            self.pipelines.push(std::mem::take(&mut self.pipeline));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{pipelines, program};

    #[test]
    fn commands_are_told_apart_and_quotes_keep_words_together() {
        let read = pipelines("a 'b | c' && d \"e;f\" | g\\ h # i | j\nk");
        assert_eq!(read, [vec![vec!["a", "b | c"]], vec![vec!["d", "e;f"], vec!["g h"]], vec![vec!["k"]]]);
    }

    #[test]
    fn the_program_stands_behind_assignments_and_sudo() {
        let words: Vec<String> = ["DEBIAN_FRONTEND=x", "sudo", "-E", "/usr/bin/apt-get", "-y"].map(String::from).into();
        assert_eq!(program(&words).map(|(name, rest)| (name, rest.len())), Some(("apt-get", 1)));
    }
}
