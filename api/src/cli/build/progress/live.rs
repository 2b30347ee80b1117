//! Progress on a terminal: the steps that run, each with its time and the last lines that it wrote; what is done becomes
//! one line above them.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::time::Duration;

use ampoule_client::types::{BuildEvent, BuildPlace, BuildStep};
use indicatif::{MultiProgress, ProgressBar, ProgressState, ProgressStyle};

use super::{Lines, harmless, head, seconds};

/// Lines of a running step that are shown.
const TAIL_MAX: usize = 5;
/// Lines of a failed step that are shown.
const KEPT_MAX: usize = 30;
/// How often times are drawn.
const TICK: Duration = Duration::from_millis(100);

/// The display.
pub(in crate::cli) struct Live {
    all: MultiProgress,
    title: ProgressBar,
    steps: HashMap<usize, BuildStep>,
    running: BTreeMap<usize, Running>,
    warnings: HashSet<String>,
}

/// A step that runs.
struct Running {
    bar: ProgressBar,
    tail: Vec<ProgressBar>,
    outputs: [Lines; 2],
    lines: VecDeque<String>,
}

fn style(template: &str) -> ProgressStyle {
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    style.with_key("time", |state: &ProgressState, output: &mut dyn std::fmt::Write| {
        let milliseconds = u64::try_from(state.elapsed().as_millis()).unwrap_or(u64::MAX);
        // A display has no one to tell that it cannot be written.
        let _ = write!(output, "{}s", seconds(milliseconds, 1));
    })
}

impl Live {
    pub(super) fn new() -> Live {
        let all = MultiProgress::new();
        let title = all.add(ProgressBar::new(0).with_style(style("[+] Building {time} ({pos}/{len})")));
        title.enable_steady_tick(TICK);
        Live { all, title, steps: HashMap::new(), running: BTreeMap::new(), warnings: HashSet::new() }
    }

    pub(super) fn show(&mut self, event: &BuildEvent) {
        match event {
            BuildEvent::Pulling { reference } => self.say(&format!(" => pulling {}", harmless(reference))),
            BuildEvent::Planned { steps } => {
                self.title.inc_length(steps.len() as u64);
                self.steps.extend(steps.iter().map(|step| (step.step, step.clone())));
            }
            BuildEvent::Warning { message, .. } => {
                if self.warnings.insert(message.clone()) {
                    self.say(&format!("warning: {}", harmless(message)));
                }
            }
            BuildEvent::Started { step } => self.start(*step),
            BuildEvent::Cached { step } => {
                self.title.inc(1);
                self.say(&format!(" => CACHED {}", head(&self.steps, *step)));
            }
            BuildEvent::Output { step, is_error, text, .. } => {
                if let Some(running) = self.running.get_mut(step) {
                    running.write(&self.all, usize::from(*is_error), text);
                }
            }
            BuildEvent::Done { step, wall_ms } => {
                if let Some(running) = self.running.remove(step) {
                    running.clear(&self.all);
                }
                self.title.inc(1);
                self.say(&format!(" => {}s {}", seconds(*wall_ms, 1), head(&self.steps, *step)));
            }
            BuildEvent::Built(_) => self.end("FINISHED"),
            BuildEvent::Failed { place, .. } => self.fail(*place),
        }
    }

    fn say(&self, line: &str) {
        // Nobody can be told that the terminal is gone.
        let _ = self.all.println(line);
    }

    fn start(&mut self, step: usize) {
        let bar = ProgressBar::new_spinner().with_style(style(" => {wide_msg} {time}"));
        let bar = self.all.add(bar.with_message(head(&self.steps, step)));
        bar.enable_steady_tick(TICK);
        let running = Running { bar, tail: Vec::new(), outputs: Default::default(), lines: VecDeque::new() };
        self.running.insert(step, running);
    }

    /// Shows what the steps wrote that stand at the place of the failure; of all that run, when none does.
    fn fail(&mut self, place: Option<BuildPlace>) {
        let is_there = |step: &usize| {
            let line = self.steps.get(step).map(|step| step.line);
            line.is_some() && line == place.map(|place| place.line)
        };
        let any = self.running.keys().any(is_there);
        let failed: Vec<usize> = self.running.keys().copied().filter(|step| !any || is_there(step)).collect();
        let mut said = Vec::new();
        for step in failed {
            let lines = self.running.get(&step).map(Running::shown).unwrap_or_default();
            if !lines.is_empty() {
                said.push(format!("------\n > {}:", head(&self.steps, step)));
                said.extend(lines);
                said.push("------".to_owned());
            }
        }
        self.end("FAILED");
        said.iter().for_each(|line| self.say(line));
    }

    fn end(&mut self, word: &str) {
        std::mem::take(&mut self.running).into_values().for_each(|running| running.clear(&self.all));
        let milliseconds = u64::try_from(self.title.elapsed().as_millis()).unwrap_or(u64::MAX);
        let (done, of) = (self.title.position(), self.title.length().unwrap_or(0));
        self.title.finish_and_clear();
        self.say(&format!("[+] Building {}s ({done}/{of}) {word}", seconds(milliseconds, 1)));
    }
}

impl Running {
    fn write(&mut self, all: &MultiProgress, output: usize, text: &str) {
        self.lines.extend(self.outputs[output].push(text));
        while self.lines.len() > KEPT_MAX {
            self.lines.pop_front();
        }
        let shown = self.shown();
        let shown = &shown[shown.len().saturating_sub(TAIL_MAX)..];
        while self.tail.len() < shown.len() {
            let above = self.tail.last().unwrap_or(&self.bar);
            let bar = ProgressBar::new_spinner().with_style(style(" => => # {wide_msg}"));
            self.tail.push(all.insert_after(above, bar));
        }
        for (bar, line) in self.tail.iter().zip(shown) {
            bar.set_message(line.clone());
        }
    }

    /// Its last lines, those that have no end yet too.
    fn shown(&self) -> Vec<String> {
        self.lines.iter().cloned().chain(self.outputs.iter().filter_map(Lines::current)).collect()
    }

    fn clear(self, all: &MultiProgress) {
        for bar in self.tail.iter().chain([&self.bar]) {
            bar.finish_and_clear();
            all.remove(bar);
        }
    }
}
