//! Following a job: its states and its output as events that can be taken up again anywhere, and its raw output.
//! A follower has no state but its place, so that an event's id says it all: `attempt-told-stdout-stderr`.

use std::sync::Arc;

use ampoule_client::types::{Event, JobState, LogChunk, Stream};
use axum::response::sse;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures_util::stream;
use tokio::sync::watch;

use super::job::{Job, Status};
use super::log::Piece;

/// How far somebody has followed a job.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Place {
    attempt: u32,
    /// The last state that was told: 0 none, 1 queued, 2 running, 3 ended.
    told: u8,
    stdout: u64,
    stderr: u64,
}

impl Place {
    /// Reads the id of an event; `None` when it is none.
    pub fn parse(id: &str) -> Option<Place> {
        let mut parts = id.split('-');
        let place = Place {
            attempt: parts.next()?.parse().ok()?,
            told: parts.next()?.parse().ok().filter(|told| *told <= 3)?,
            stdout: parts.next()?.parse().ok()?,
            stderr: parts.next()?.parse().ok()?,
        };
        parts.next().is_none().then_some(place)
    }

    fn id(self) -> String {
        format!("{}-{}-{}-{}", self.attempt, self.told, self.stdout, self.stderr)
    }

    fn offset(&mut self, stream: Stream) -> &mut u64 {
        match stream {
            Stream::Stdout => &mut self.stdout,
            Stream::Stderr => &mut self.stderr,
        }
    }
}

struct Follower {
    job: Arc<Job>,
    status: watch::Receiver<Status>,
    place: Place,
}

impl Follower {
    fn new(job: Arc<Job>, place: Place) -> Follower {
        let status = job.status.subscribe();
        Follower { job, status, place }
    }

    /// The next event; `None` after the last.
    async fn next(&mut self) -> Option<Event> {
        loop {
            // Marked as seen before the look, so that what comes after it wakes this again.
            let status = self.status.borrow_and_update().clone();
            if let Some(event) = self.look(&status) {
                return Some(event);
            }
            if status.state == JobState::Ended || self.status.changed().await.is_err() {
                return None;
            }
        }
    }

    fn look(&mut self, status: &Status) -> Option<Event> {
        if self.place.attempt != status.attempt {
            self.place = Place { attempt: status.attempt, ..Place::default() };
        }
        let rank = match status.state {
            JobState::Queued => 1,
            JobState::Running => 2,
            JobState::Ended => 3,
        };
        if self.place.told != rank && rank < 3 {
            self.place.told = rank;
            return Some(Event::State { state: status.state, attempt: status.attempt });
        }
        if let Some(event) = self.read(Stream::Stdout).or_else(|| self.read(Stream::Stderr)) {
            return Some(event);
        }
        let ended = status.conclusion.as_ref().filter(|_| self.place.told != 3)?;
        self.place.told = 3;
        Some(Event::Ended { ending: ended.ending.clone() })
    }

    fn read(&mut self, stream: Stream) -> Option<Event> {
        let attempt = self.place.attempt;
        let offset = self.place.offset(stream);
        match self.job.read(stream, *offset, attempt) {
            Piece::Nothing => None,
            Piece::Gap(gap) => {
                *offset += gap.bytes;
                Some(Event::Gap { stream, gap })
            }
            Piece::Bytes(bytes) => {
                let chunk = LogChunk { stream, offset: *offset, base64: STANDARD.encode(&bytes) };
                *offset += bytes.len() as u64;
                Some(Event::Log(chunk))
            }
        }
    }
}

/// All events of a job from a place on, as server-sent events.
pub fn events(job: Arc<Job>, place: Place) -> impl stream::Stream<Item = Result<sse::Event, axum::Error>> {
    stream::unfold(Follower::new(job, place), |mut follower| async {
        let event = follower.next().await?;
        let name = match &event {
            Event::State { .. } => "state",
            Event::Log(_) => "log",
            Event::Gap { .. } => "gap",
            Event::Ended { .. } => "ended",
        };
        let written = sse::Event::default().id(follower.place.id()).event(name).json_data(&event);
        Some((written, follower))
    })
}

/// The bytes of one output as they are kept, to its end if `follow`, else as far as it is written now.
pub fn bytes(
    job: Arc<Job>,
    which: Stream,
    follow: bool,
) -> impl stream::Stream<Item = Result<Bytes, std::convert::Infallible>> {
    let attempt = job.status.borrow().attempt;
    let follower = Follower::new(job, Place { attempt, ..Place::default() });
    stream::unfold(follower, move |mut follower| async move {
        loop {
            let status = follower.status.borrow_and_update().clone();
            let offset = *follower.place.offset(which);
            if status.attempt != follower.place.attempt {
                // What two attempts wrote is not to be mixed.
                if offset > 0 {
                    return None;
                }
                follower.place.attempt = status.attempt;
            }
            let piece = follower.job.read(which, offset, status.attempt);
            match piece {
                Piece::Bytes(bytes) => {
                    *follower.place.offset(which) += bytes.len() as u64;
                    return Some((Ok(Bytes::from(bytes)), follower));
                }
                Piece::Gap(gap) => *follower.place.offset(which) += gap.bytes,
                Piece::Nothing if !follow || status.state == JobState::Ended => return None,
                Piece::Nothing => {
                    if follower.status.changed().await.is_err() {
                        return None;
                    }
                }
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_id_of_an_event_reads_back() {
        let place = Place { attempt: 2, told: 1, stdout: 70_000, stderr: 0 };
        assert_eq!(Place::parse(&place.id()), Some(place));
        for broken in ["", "1-2-3", "1-9-0-0", "1-2-3-4-5", "a-1-1-1"] {
            assert_eq!(Place::parse(broken), None, "{broken}");
        }
    }
}
