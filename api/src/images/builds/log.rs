//! What builds told: one line of JSON an event, in a file each. A follower has no state but its place in the file, so that
//! the id of an event, which is where the next one begins, says it all; the last event is not in the file but in the
//! conclusion, and its id is one more.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Instant;

use ampoule_client::types::{BuildEvent, BuildStepState, BuildStepStatus};
use tokio::sync::watch;

/// Most bytes of a file that outputs may fill; all else is bounded by the number of steps.
const OUTPUT_BYTES_MAX: u64 = 64 << 20;

/// How far a build is: so much of the file counts, and how it ended.
#[derive(Clone, Debug, Default)]
pub struct Progress {
    /// Bytes of whole lines.
    pub bytes: u64,
    /// The last event.
    pub last: Option<Box<BuildEvent>>,
}

/// Writes what a build tells.
pub struct Journal {
    file: File,
    bytes: u64,
    is_full: bool,
    is_broken: bool,
    started: HashMap<usize, Instant>,
}

impl Journal {
    /// A new file.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn create(path: &Path) -> io::Result<Journal> {
        let file = File::options().write(true).create_new(true).open(path)?;
        Ok(Journal { file, bytes: 0, is_full: false, is_broken: false, started: HashMap::new() })
    }

    /// Bytes of whole lines.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Writes an event. What cannot be written is left out: a build does not fail for its log.
    pub fn tell(&mut self, mut event: BuildEvent) {
        match &mut event {
            BuildEvent::Started { step } => drop(self.started.insert(*step, Instant::now())),
            BuildEvent::Output { step, step_ms, .. } => {
                if self.bytes >= OUTPUT_BYTES_MAX {
                    if self.is_full {
                        return;
                    }
                    self.is_full = true;
                    let message = format!("the steps wrote more than {OUTPUT_BYTES_MAX} bytes; the rest is not kept");
                    event = BuildEvent::Warning { step: None, message };
                } else if let Some(started) = self.started.get(step) {
                    *step_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
                }
            }
            _ => {}
        }
        if self.is_broken {
            return;
        }
        let mut line = serde_json::to_vec(&event).unwrap_or_default();
        line.push(b'\n');
        // At its place, so that a line that was written by half is written over.
        match self.file.write_all_at(&line, self.bytes) {
            Ok(()) => self.bytes += line.len() as u64,
            Err(error) => {
                tracing::warn!(%error, "could not write the log of a build on");
                self.is_broken = true;
            }
        }
    }
}

/// Reads what a build told, from a place on.
pub struct Follower {
    file: Option<BufReader<File>>,
    progress: watch::Receiver<Progress>,
    place: u64,
    follows: bool,
}

impl Follower {
    /// A follower that begins at a place, and goes on to the build's end if it `follows`; `None` when an event ends
    /// nowhere there.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn new(
        path: &Path,
        progress: watch::Receiver<Progress>,
        place: u64,
        follows: bool,
    ) -> io::Result<Option<Follower>> {
        let file = match File::open(path) {
            Ok(file) => Some(file),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        let bytes = progress.borrow().bytes;
        let mut before = [b'\n'];
        if let Some(file) = &file
            && (1..=bytes).contains(&place)
        {
            file.read_exact_at(&mut before, place - 1)?;
        }
        if place > bytes + 1 || before != *b"\n" {
            return Ok(None);
        }
        let mut file = file.map(BufReader::new);
        if let Some(file) = &mut file {
            file.seek(SeekFrom::Start(place))?;
        }
        Ok(Some(Follower { file, progress, place, follows }))
    }

    /// The next event and its id; `None` after the last.
    pub async fn next(&mut self) -> Option<(u64, BuildEvent)> {
        loop {
            // Marked as seen before the look, so that what comes after it wakes this again.
            let progress = self.progress.borrow_and_update().clone();
            if self.place < progress.bytes {
                // What is there is in the page cache, or soon is.
                let line = self.line()?;
                self.place += line.len() as u64;
                return Some((self.place, serde_json::from_slice(&line).ok()?));
            }
            if let Some(last) = progress.last {
                let is_new = self.place == progress.bytes;
                self.place = progress.bytes + 1;
                return is_new.then_some((self.place, *last));
            }
            if !self.follows || self.progress.changed().await.is_err() {
                return None;
            }
        }
    }

    fn line(&mut self) -> Option<Vec<u8>> {
        let mut line = Vec::new();
        self.file.as_mut()?.read_until(b'\n', &mut line).ok().filter(|count| *count > 0)?;
        Some(line)
    }
}

/// Takes away the half of a line that a killed service left; returns how many bytes there are. Blocks.
///
/// # Errors
/// The file cannot be read or written.
pub(super) fn mend(path: &Path) -> io::Result<u64> {
    let file = match File::options().read(true).write(true).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        Err(error) => return Err(error),
    };
    let mut whole = 0;
    let mut reader = BufReader::new(&file);
    let mut line = Vec::new();
    while reader.read_until(b'\n', &mut line)? > 0 && line.ends_with(b"\n") {
        whole += line.len() as u64;
        line.clear();
    }
    file.set_len(whole)?;
    Ok(whole)
}

/// The steps of a build, and how far each came, from what it told. Blocks.
///
/// # Errors
/// The file cannot be read.
pub(super) fn steps(path: &Path, bytes: u64) -> io::Result<Vec<BuildStepStatus>> {
    let mut steps: Vec<BuildStepStatus> = Vec::new();
    let file = match File::open(path) {
        Ok(file) => BufReader::new(io::Read::take(file, bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(steps),
        Err(error) => return Err(error),
    };
    let set = |steps: &mut [BuildStepStatus], step: usize, state, wall_ms| {
        if let Some(status) = steps.get_mut(step) {
            (status.state, status.wall_ms) = (state, wall_ms);
        }
    };
    for line in file.split(b'\n') {
        let line = line?;
        // Most of it, and of no use here.
        if line.starts_with(b"{\"kind\":\"output\"") {
            continue;
        }
        match serde_json::from_slice(&line).map_err(io::Error::other)? {
            BuildEvent::Planned { steps: planned } => {
                let waiting = |step| BuildStepStatus { step, state: BuildStepState::Waiting, wall_ms: None };
                steps.extend(planned.into_iter().map(waiting));
            }
            BuildEvent::Started { step } => set(&mut steps, step, BuildStepState::Started, None),
            BuildEvent::Cached { step } => set(&mut steps, step, BuildStepState::Cached, None),
            BuildEvent::Done { step, wall_ms } => set(&mut steps, step, BuildStepState::Done, Some(wall_ms)),
            _ => {}
        }
    }
    Ok(steps)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn output(text: &str) -> BuildEvent {
        BuildEvent::Output { step: 0, is_error: false, text: text.to_owned(), step_ms: 0 }
    }

    async fn texts(mut follower: Follower) -> Vec<String> {
        let mut texts = Vec::new();
        while let Some((id, event)) = follower.next().await {
            texts.push(match event {
                BuildEvent::Output { text, .. } => format!("{id} {text}"),
                BuildEvent::Warning { message, .. } => format!("{id} last {message}"),
                other => panic!("{other:?}"),
            });
        }
        texts
    }

    #[tokio::test]
    async fn what_was_told_is_read_from_any_event_on_and_from_nowhere_else() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("log");
        let mut journal = Journal::create(&path).expect("is made");
        let (sender, progress) = watch::channel(Progress::default());
        journal.tell(output("one"));
        let first = journal.bytes();
        journal.tell(output("two"));
        sender.send_replace(Progress { bytes: journal.bytes(), last: None });
        let follow = |place, follows| Follower::new(&path, progress.clone(), place, follows).expect("can be read");
        let second = journal.bytes();
        let all = [format!("{first} one"), format!("{second} two"), format!("{} last end", second + 1)];
        assert_eq!(texts(follow(0, false).expect("a place")).await, all[..2]);
        assert!(follow(1, true).is_none() && follow(second + 2, true).is_none());
        let waits = tokio::spawn(texts(follow(first, true).expect("a place")));
        let last = BuildEvent::Warning { step: None, message: "end".to_owned() };
        sender.send_replace(Progress { bytes: second, last: Some(Box::new(last)) });
        assert_eq!(waits.await.expect("it ends"), all[1..]);
        assert_eq!(texts(follow(0, true).expect("a place")).await, all);
        assert!(texts(follow(second + 1, true).expect("a place")).await.is_empty());
    }
}
