//! Which waiting job is next: a pure value under its owner's lock, without clock, thread or store.
//!
//! Higher priorities go first. Within a priority the tokens take turns, and within a token the first come is the
//! first served; so nobody waits behind more than one job of each other token for every job of their own.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use jiff::Timestamp;
use uuid::Uuid;

/// A job as the queue sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// The job.
    pub id: Uuid,
    /// Whose it is.
    pub token: String,
    /// Higher goes first.
    pub priority: i32,
    /// When it is no longer wanted.
    pub deadline: Option<Timestamp>,
}

/// The queue holds as many jobs as it may.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the queue holds {0} jobs, as many as it may")]
pub struct Full(pub usize);

/// The waiting jobs.
#[derive(Debug)]
pub struct Queue {
    jobs_max: usize,
    levels: BTreeMap<Reverse<i32>, Level>,
    places: HashMap<Uuid, Waiting>,
    deadlines: BTreeSet<(Timestamp, Uuid)>,
}

/// The jobs of one priority. Every token in `turns` has at least one job in `lines`, and stands there once.
#[derive(Debug, Default)]
struct Level {
    turns: VecDeque<String>,
    lines: HashMap<String, VecDeque<Uuid>>,
}

impl Queue {
    /// An empty queue for at most so many jobs.
    pub fn new(jobs_max: usize) -> Queue {
        Queue { jobs_max, levels: BTreeMap::new(), places: HashMap::new(), deadlines: BTreeSet::new() }
    }

    /// How many jobs wait.
    pub fn len(&self) -> usize {
        self.places.len()
    }

    /// Whether none waits.
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// Lets a job wait.
    ///
    /// # Errors
    /// There is no room. The job is not taken.
    pub fn push(&mut self, job: Waiting) -> Result<(), Full> {
        if self.places.len() >= self.jobs_max {
            return Err(Full(self.places.len()));
        }
        self.readmit(job);
        Ok(())
    }

    /// Lets a job wait that has been acknowledged before: one of a former life of the service, or one that is tried
    /// again. It is taken although the queue may be full; the service never has more of them than it once took.
    pub fn readmit(&mut self, job: Waiting) {
        let level = self.levels.entry(Reverse(job.priority)).or_default();
        let line = level.lines.entry(job.token.clone()).or_default();
        if line.is_empty() {
            level.turns.push_back(job.token.clone());
        }
        line.push_back(job.id);
        if let Some(deadline) = job.deadline {
            self.deadlines.insert((deadline, job.id));
        }
        self.places.insert(job.id, job);
    }

    /// Takes the job whose turn it is.
    pub fn pop(&mut self) -> Option<Waiting> {
        let mut entry = self.levels.first_entry()?;
        let level = entry.get_mut();
        let token = level.turns.pop_front()?;
        let line = level.lines.get_mut(&token)?;
        let id = line.pop_front()?;
        if line.is_empty() {
            level.lines.remove(&token);
        } else {
            level.turns.push_back(token);
        }
        if level.turns.is_empty() {
            entry.remove();
        }
        self.forget(id)
    }

    /// Takes a job out of its turn; `None` when it does not wait here.
    pub fn remove(&mut self, id: Uuid) -> Option<Waiting> {
        let job = self.forget(id)?;
        let level = self.levels.get_mut(&Reverse(job.priority))?;
        let line = level.lines.get_mut(&job.token)?;
        line.retain(|other| *other != id);
        if line.is_empty() {
            level.lines.remove(&job.token);
            level.turns.retain(|token| *token != job.token);
        }
        if level.turns.is_empty() {
            self.levels.remove(&Reverse(job.priority));
        }
        Some(job)
    }

    /// Takes all jobs whose deadline is not after `now`.
    pub fn expire(&mut self, now: Timestamp) -> Vec<Waiting> {
        let late: Vec<Uuid> = self.deadlines.iter().take_while(|(when, _)| *when <= now).map(|(_, id)| *id).collect();
        late.into_iter().filter_map(|id| self.remove(id)).collect()
    }

    fn forget(&mut self, id: Uuid) -> Option<Waiting> {
        let job = self.places.remove(&id)?;
        if let Some(deadline) = job.deadline {
            self.deadlines.remove(&(deadline, id));
        }
        Some(job)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// What may happen to a queue.
    #[derive(Clone, Debug)]
    enum Act {
        Push { token: u8, priority: i32, deadline: Option<i64> },
        Pop,
        Remove(usize),
        Expire(i64),
    }

    fn act() -> impl Strategy<Value = Act> {
        prop_oneof![
            4 => (0u8..4, -2i32..3, proptest::option::of(0i64..50))
                .prop_map(|(token, priority, deadline)| Act::Push { token, priority, deadline }),
            3 => Just(Act::Pop),
            1 => (0usize..40).prop_map(Act::Remove),
            1 => (0i64..50).prop_map(Act::Expire),
        ]
    }

    fn time(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("a time")
    }

    /// Plays a history against a plain list, and calls `popped` with what waited and what was taken.
    fn play(acts: Vec<Act>, jobs_max: usize, mut popped: impl FnMut(&[Waiting], &Waiting)) {
        let mut queue = Queue::new(jobs_max);
        let mut model: Vec<Waiting> = Vec::new();
        for (index, act) in acts.into_iter().enumerate() {
            match act {
                Act::Push { token, priority, deadline } => {
                    let id = Uuid::from_u128(index as u128);
                    let job = Waiting { id, token: token.to_string(), priority, deadline: deadline.map(time) };
                    assert_eq!(queue.push(job.clone()).is_ok(), model.len() < jobs_max);
                    if model.len() < jobs_max {
                        model.push(job);
                    }
                }
                Act::Pop => match queue.pop() {
                    None => assert!(model.is_empty()),
                    Some(job) => {
                        popped(&model, &job);
                        model.retain(|other| other.id != job.id);
                    }
                },
                Act::Remove(index) => {
                    let id = model.get(index).map_or(Uuid::max(), |job| job.id);
                    assert_eq!(queue.remove(id).is_some(), index < model.len());
                    model.retain(|job| job.id != id);
                }
                Act::Expire(second) => {
                    let late = |job: &Waiting| job.deadline.is_some_and(|when| when <= time(second));
                    let mut expected: Vec<Uuid> = model.iter().filter(|job| late(job)).map(|job| job.id).collect();
                    let mut gone: Vec<Uuid> = queue.expire(time(second)).iter().map(|job| job.id).collect();
                    expected.sort();
                    gone.sort();
                    assert_eq!(gone, expected);
                    model.retain(|job| !late(job));
                }
            }
            assert_eq!(queue.len(), model.len());
            assert!(queue.len() <= jobs_max);
        }
    }

    proptest! {
        #[test]
        fn a_higher_priority_goes_first_and_a_token_is_served_in_order(acts in proptest::collection::vec(act(), 0..120)) {
            play(acts, 16, |waiting, taken| {
                let highest = waiting.iter().map(|job| job.priority).max();
                assert_eq!(Some(taken.priority), highest);
                let first = waiting.iter().find(|job| job.priority == taken.priority && job.token == taken.token);
                assert_eq!(first.map(|job| job.id), Some(taken.id));
            });
        }

        #[test]
        fn no_token_is_passed_over_twice_by_another_of_its_priority(acts in proptest::collection::vec(act(), 0..160)) {
            // A token that is removed and comes back starts at the end again, which is not being passed over.
            let acts = acts.into_iter().filter(|act| matches!(act, Act::Push { .. } | Act::Pop)).collect();
            // For each waiting (priority, token): how often every other token was served since it last was.
            let mut passed: HashMap<(i32, String), HashMap<String, u32>> = HashMap::new();
            play(acts, 64, |waiting, taken| {
                let key = (taken.priority, taken.token.clone());
                passed.remove(&key);
                let same_level = waiting.iter().filter(|job| job.priority == taken.priority);
                let others: BTreeSet<_> = same_level.map(|job| &job.token).filter(|token| **token != taken.token).collect();
                for token in others {
                    let times = passed.entry((taken.priority, token.clone())).or_default();
                    *times.entry(taken.token.clone()).or_default() += 1;
                }
                passed.retain(|(priority, token), _| {
                    waiting.iter().any(|job| job.priority == *priority && job.token == *token)
                });
                for (who, times) in &passed {
                    assert!(times.values().all(|count| *count <= 1), "{who:?} was passed over: {times:?}");
                }
            });
        }
    }

    #[test]
    fn tokens_take_turns() {
        let mut queue = Queue::new(10);
        for (id, token) in [(1, "a"), (2, "a"), (3, "a"), (4, "b"), (5, "c")] {
            let job = Waiting { id: Uuid::from_u128(id), token: token.to_owned(), priority: 0, deadline: None };
            queue.push(job).expect("room");
        }
        let order: Vec<u128> = std::iter::from_fn(|| queue.pop()).map(|job| job.id.as_u128()).collect();
        assert_eq!(order, [1, 4, 5, 2, 3]);
    }
}
