//! Who runs now and who waits: the queue and the count of those that run, under one lock of their owner.

use std::time::Duration;

use uuid::Uuid;

use super::queue::{Queue, Waiting};

/// How much the newest run weighs in the average of how long runs take.
const WEIGHT: f64 = 0.1;

/// The queue and the slots for running jobs. At most `concurrency` run; a job waits only while all slots are taken.
#[derive(Debug)]
pub struct Schedule {
    /// Those that wait.
    pub queue: Queue,
    running: u32,
    concurrency: u32,
    run_seconds: f64,
    is_closed: bool,
    is_interrupted: bool,
}

/// What happens to a job that comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// It has a slot.
    Runs,
    /// It is in the queue.
    Waits,
}

/// Why a job is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoPlace {
    /// The service is being stopped.
    Closed,
    /// The queue is full.
    Full,
}

impl Schedule {
    /// Nobody runs, nobody waits.
    pub fn new(concurrency: u32, queue_max: usize) -> Schedule {
        Schedule {
            queue: Queue::new(queue_max),
            running: 0,
            concurrency,
            run_seconds: 1.0,
            is_closed: false,
            is_interrupted: false,
        }
    }

    /// Finds a place for a job.
    ///
    /// # Errors
    /// There is none.
    pub fn place(&mut self, job: Waiting) -> Result<Place, NoPlace> {
        if self.is_closed {
            return Err(NoPlace::Closed);
        }
        if self.running < self.concurrency && self.queue.is_empty() {
            self.running += 1;
            return Ok(Place::Runs);
        }
        self.queue.push(job).map(|()| Place::Waits).map_err(|_| NoPlace::Full)
    }

    /// Undoes `place`.
    pub fn take_back(&mut self, place: Place, id: Uuid) {
        match place {
            Place::Runs => self.running -= 1,
            Place::Waits => drop(self.queue.remove(id)),
        }
    }

    /// The next job for a free slot, which is taken with it.
    pub fn take_next(&mut self) -> Option<Waiting> {
        if self.is_closed || self.running >= self.concurrency {
            return None;
        }
        let next = self.queue.pop()?;
        self.running += 1;
        Some(next)
    }

    /// Gives a slot back after a run of so long.
    pub fn finished(&mut self, time: Duration) {
        self.running -= 1;
        self.run_seconds += WEIGHT * (time.as_secs_f64() - self.run_seconds);
    }

    /// How long the queue takes to get through, as runs have gone so far.
    pub fn queue_time(&self) -> Duration {
        let rounds = self.queue.len() as f64 / f64::from(self.concurrency);
        Duration::try_from_secs_f64(rounds * self.run_seconds).unwrap_or(Duration::MAX)
    }

    /// How many run.
    pub fn running(&self) -> u32 {
        self.running
    }

    /// Takes no more jobs and starts none.
    pub fn close(&mut self) {
        self.is_closed = true;
    }

    /// Says that those which run are stopped by the service and not by their owners.
    pub fn interrupt(&mut self) {
        self.is_interrupted = true;
    }

    /// Whether those which run are stopped by the service.
    pub fn is_interrupted(&self) -> bool {
        self.is_interrupted
    }
}
