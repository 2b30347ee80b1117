//! How many sandboxes are made ahead, and of which frames: a pure reckoning over what was asked for lately.

use std::collections::VecDeque;

use crate::spec::{Frame, Limits};

/// Most frames that sandboxes are made ahead for.
const HOT_FRAMES_MAX: usize = 4;

/// A frame that was asked for, and what its sandboxes were last limited to.
#[derive(Clone, Debug)]
pub(crate) struct Hot {
    pub(crate) frame: Frame,
    pub(crate) limits: Limits,
}

/// The frames that were asked for lately, newest first.
#[derive(Debug, Default)]
pub(crate) struct Demand {
    recent: VecDeque<Hot>,
    sandboxes: usize,
}

impl Demand {
    /// Will plan for this many sandboxes in all.
    pub(crate) fn new(sandboxes: usize) -> Demand {
        Demand { recent: VecDeque::new(), sandboxes }
    }

    /// Remembers that a sandbox of this frame was asked for; an order that does not change costs a comparison.
    pub(crate) fn note(&mut self, frame: &Frame, limits: &Limits) {
        if let Some(first) = self.recent.front_mut()
            && first.frame == *frame
        {
            if first.limits != *limits {
                first.limits = limits.clone();
            }
            return;
        }
        self.recent.retain(|hot| hot.frame != *frame);
        self.recent.push_front(Hot { frame: frame.clone(), limits: limits.clone() });
        self.recent.truncate(HOT_FRAMES_MAX);
    }

    /// Forgets a frame, one that cannot be prepared.
    pub(crate) fn forget(&mut self, frame: &Frame) {
        self.recent.retain(|hot| hot.frame != *frame);
    }

    /// Forgets every frame for which `is_gone` holds.
    pub(crate) fn forget_where(&mut self, is_gone: impl Fn(&Frame) -> bool) {
        self.recent.retain(|hot| !is_gone(&hot.frame));
    }

    /// What is to stand ready: the newest frame gets the most, each older one half of what is left.
    pub(crate) fn plan(&self) -> impl Iterator<Item = (&Hot, usize)> {
        let mut left = self.sandboxes;
        let count = self.recent.len();
        self.recent.iter().enumerate().map(move |(index, hot)| {
            let share = if index + 1 == count { left } else { left.div_ceil(2) };
            left -= share;
            (hot, share)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::Network;

    fn frame(hostname: &str) -> Frame {
        Frame {
            layers: Vec::new(),
            writable: Vec::new(),
            user: "0".to_owned(),
            hostname: hostname.to_owned(),
            network: Network::None,
        }
    }

    fn limits() -> Limits {
        Limits { memory_bytes: 1, cpu_milli: 1, pids: 1, cpu_time_ms: 1, wall_time_ms: 1, open_files: 1, file_bytes: 1 }
    }

    fn check(asked: &[&str], sandboxes: usize, expected: &[(&str, usize)]) {
        let mut demand = Demand::new(sandboxes);
        for name in asked {
            demand.note(&frame(name), &limits());
        }
        let plan: Vec<_> = demand.plan().map(|(hot, share)| (hot.frame.hostname.as_str(), share)).collect();
        assert_eq!(plan, expected);
    }

    #[test]
    fn the_newest_frame_gets_the_most_and_no_more_than_all() {
        check(&[], 8, &[]);
        check(&["a"], 8, &[("a", 8)]);
        check(&["a", "b"], 8, &[("b", 4), ("a", 4)]);
        check(&["a", "b", "c", "b"], 8, &[("b", 4), ("c", 2), ("a", 2)]);
        check(&["a", "b", "c", "d", "e"], 8, &[("e", 4), ("d", 2), ("c", 1), ("b", 1)]);
        check(&["a", "b"], 1, &[("b", 1), ("a", 0)]);
        check(&["a"], 0, &[("a", 0)]);
    }

    proptest::proptest! {
        #[test]
        fn no_history_plans_more_than_there_may_be(asked in "[a-h]{0,40}", sandboxes in 0_usize..200) {
            let mut demand = Demand::new(sandboxes);
            for name in asked.split("").filter(|name| !name.is_empty()) {
                demand.note(&frame(name), &limits());
            }
            let planned: usize = demand.plan().map(|(_, share)| share).sum();
            let expected = if asked.is_empty() { 0 } else { sandboxes };
            proptest::prop_assert_eq!(planned, expected);
            proptest::prop_assert!(demand.plan().count() <= HOT_FRAMES_MAX);
        }
    }
}
