//! What a build tells, as people and programs want it: lines that a pipe can take, as BuildKit writes them; on a terminal
//! the steps that run, with the last lines that they wrote; each event as JSON; or nothing.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io::{self, IsTerminal, Write};

use ampoule_client::types::{BuildEvent, BuildStep};
use clap::ValueEnum;

use live::Live;

mod live;

/// Bytes of a line that has no end which are kept until it is shown as one.
const LINE_BYTES_MAX: usize = 64 * 1024;

/// How progress is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(in crate::cli) enum Progress {
    /// `tty` on a terminal, else `plain`
    Auto,
    /// The steps that run, with the last lines of each; `plain` where there is no terminal
    Tty,
    /// Lines, as BuildKit's
    Plain,
    /// Each event as one line of JSON, on standard output
    Json,
    /// Nothing but the image's digest
    Quiet,
}

/// Where progress goes.
pub(in crate::cli) enum Display {
    Quiet,
    Json,
    Plain(Plain),
    Live(Box<Live>),
}

impl Display {
    pub(in crate::cli) fn new(progress: Progress) -> Display {
        match progress {
            Progress::Quiet => Display::Quiet,
            Progress::Json => Display::Json,
            Progress::Auto | Progress::Tty if io::stderr().is_terminal() => Display::Live(Box::new(Live::new())),
            Progress::Auto | Progress::Tty | Progress::Plain => Display::Plain(Plain::default()),
        }
    }

    /// Shows an event.
    pub(in crate::cli) fn show(&mut self, event: &BuildEvent) -> io::Result<()> {
        match self {
            Display::Quiet => Ok(()),
            Display::Json => writeln!(io::stdout(), "{}", serde_json::to_string(event)?),
            Display::Plain(plain) => io::stderr().write_all(plain.text(event).as_bytes()),
            Display::Live(live) => {
                live.show(event);
                Ok(())
            }
        }
    }
}

/// Lines for a pipe.
#[derive(Default)]
pub(in crate::cli) struct Plain {
    steps: HashMap<usize, BuildStep>,
    outputs: BTreeMap<(usize, bool), Lines>,
    warnings: HashSet<String>,
    /// The step that was told of last.
    last: Option<usize>,
}

impl Plain {
    fn text(&mut self, event: &BuildEvent) -> String {
        match event {
            BuildEvent::Pulling { reference } => format!("pulling {}\n", harmless(reference)),
            BuildEvent::Planned { steps } => {
                self.steps.extend(steps.iter().map(|step| (step.step, step.clone())));
                String::new()
            }
            // What is true of several steps is said once.
            BuildEvent::Warning { message, .. } if self.warnings.insert(message.clone()) => {
                format!("warning: {}\n", harmless(message))
            }
            BuildEvent::Warning { .. } => String::new(),
            BuildEvent::Started { step } => self.of(*step, &[head(&self.steps, *step)]),
            BuildEvent::Cached { step } => self.of(*step, &[head(&self.steps, *step), "CACHED".to_owned()]),
            BuildEvent::Output { step, is_error, text, step_ms } => {
                let lines = self.outputs.entry((*step, *is_error)).or_default().push(text);
                let at = seconds(*step_ms, 3);
                self.of(*step, &lines.into_iter().map(|line| format!("{at} {line}")).collect::<Vec<_>>())
            }
            BuildEvent::Done { step, wall_ms } => {
                let mut lines = self.rest_of(*step);
                lines.push(format!("DONE {}s", seconds(*wall_ms, 1)));
                self.of(*step, &lines)
            }
            BuildEvent::Built(_) | BuildEvent::Failed { .. } => {
                let steps: Vec<usize> = self.outputs.keys().map(|(step, _)| *step).collect();
                let rest_of = |step| {
                    let rest = self.rest_of(step);
                    self.of(step, &rest)
                };
                steps.into_iter().map(rest_of).collect()
            }
        }
    }

    /// What a step wrote last, without the end of a line.
    fn rest_of(&mut self, step: usize) -> Vec<String> {
        let rest = [false, true].into_iter().filter_map(|is_error| self.outputs.remove(&(step, is_error))?.current());
        rest.collect()
    }

    /// Lines of a step; those of another one are set off.
    fn of(&mut self, step: usize, lines: &[String]) -> String {
        if lines.is_empty() {
            return String::new();
        }
        let gap = if self.last.replace(step).is_some_and(|last| last != step) { "\n" } else { "" };
        let number = step + 1;
        lines.iter().fold(gap.to_owned(), |text, line| text + &format!("#{number} {line}\n"))
    }
}

/// A step in one line.
fn head(steps: &HashMap<usize, BuildStep>, step: usize) -> String {
    let Some(step) = steps.get(&step) else { return String::new() };
    let text = step.text.lines().next().unwrap_or_default();
    harmless(&format!("[{} {}/{}] {text}", step.stage, step.of_stage, step.stage_steps))
}

/// A time in seconds, with so many digits of the thousand.
fn seconds(milliseconds: u64, digits: usize) -> String {
    let thousandths = format!("{:03}", milliseconds % 1000);
    format!("{}.{}", milliseconds / 1000, &thousandths[..digits])
}

/// The lines of an output that comes in pieces.
#[derive(Default)]
struct Lines {
    begun: String,
}

impl Lines {
    /// The lines that are whole with this piece.
    fn push(&mut self, text: &str) -> Vec<String> {
        self.begun.push_str(text);
        let end = match self.begun.rfind('\n') {
            Some(end) => end + 1,
            None if self.begun.len() > LINE_BYTES_MAX => self.begun.len(),
            None => return Vec::new(),
        };
        let whole: String = self.begun.drain(..end).collect();
        whole.lines().map(as_seen).collect()
    }

    /// The line that has begun, as it is now.
    fn current(&self) -> Option<String> {
        (!self.begun.is_empty()).then(|| as_seen(&self.begun))
    }
}

/// A line as a terminal would have it at its end: what was written over is gone.
fn as_seen(line: &str) -> String {
    harmless(line.rsplit('\r').find(|part| !part.is_empty()).unwrap_or_default())
}

/// Text for a terminal: what others wrote must not move its cursor. Sequences that set colours and the like are left out,
/// other control characters are replaced.
pub(super) fn harmless(text: &str) -> String {
    let mut clean = String::with_capacity(text.len());
    let mut letters = text.chars().peekable();
    while let Some(letter) = letters.next() {
        if letter == '\u{1b}' && letters.next_if_eq(&'[').is_some() {
            // Parameters, and one letter that ends the sequence.
            while letters.next_if(|letter| matches!(letter, ' '..='?')).is_some() {}
            letters.next_if(|letter| matches!(letter, '@'..='~'));
        } else if letter.is_control() && !matches!(letter, '\n' | '\t') {
            clean.push('\u{fffd}');
        } else {
            clean.push(letter);
        }
    }
    clean
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(step: usize, text: &str) -> BuildStep {
        BuildStep {
            step,
            stage: "stage-0".to_owned(),
            of_stage: step + 1,
            stage_steps: 2,
            text: text.to_owned(),
            line: 1,
        }
    }

    fn output(step: usize, text: &str) -> BuildEvent {
        BuildEvent::Output { step, is_error: false, text: text.to_owned(), step_ms: 1234 }
    }

    #[test]
    fn a_pipe_gets_lines_as_buildkit_writes_them() {
        let mut plain = Plain::default();
        let warning = || BuildEvent::Warning { step: None, message: "no network".to_owned() };
        let events = [
            BuildEvent::Planned { steps: vec![step(0, "RUN a\nb"), step(1, "RUN c")] },
            BuildEvent::Cached { step: 0 },
            BuildEvent::Started { step: 1 },
            warning(),
            warning(),
            output(1, "half"),
            output(1, " a line\nanother\r\n"),
            output(1, "10%\r20%\rno end"),
            BuildEvent::Done { step: 1, wall_ms: 61_290 },
        ];
        let text: String = events.iter().map(|event| plain.text(event)).collect();
        let expected = "#1 [stage-0 1/2] RUN a\n#1 CACHED\n\n#2 [stage-0 2/2] RUN c\nwarning: no network\n\
            #2 1.234 half a line\n#2 1.234 another\n#2 no end\n#2 DONE 61.2s\n";
        assert_eq!(text, expected);
    }

    #[test]
    fn what_a_failed_step_wrote_last_is_shown() {
        let mut plain = Plain::default();
        plain.text(&output(3, "why"));
        let problem = crate::problem::Refused::new(crate::problem::BUILD_FAILED, "no").problem;
        assert_eq!(plain.text(&BuildEvent::Failed { problem, place: None }), "#4 why\n");
    }

    #[test]
    fn nothing_that_moves_a_cursor_is_left_of_a_text() {
        let cases = [
            ("plain ä\tb", "plain ä\tb"),
            ("\u{1b}[31mred\u{1b}[0m", "red"),
            ("\u{1b}[2J\u{1b}[1;1Hgone", "gone"),
            ("\u{1b}]0;title\u{7}", "\u{fffd}]0;title\u{fffd}"),
            ("\u{9b}2J\u{8}\u{1b}", "\u{fffd}2J\u{fffd}\u{fffd}"),
            ("\u{1b}[\u{1b}[1m", ""),
        ];
        for (text, expected) in cases {
            assert_eq!(harmless(text), expected, "{text:?}");
        }
        assert_eq!(as_seen("10%\r50%\r100%\r"), "100%");
    }
}
