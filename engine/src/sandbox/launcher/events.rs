//! The launcher's loop: one wait over everything that can speak to it, and what can wait until nobody does.

use std::os::fd::{AsFd, OwnedFd};
use std::time::Instant;

use rustix::event::epoll;

use crate::sandbox::handshake::{InitReply, Reply, Request, ZygoteReply, receive};
use crate::sandbox::launcher::idle::QUIET;
use crate::sandbox::launcher::lifecycle::Launcher;
use crate::sandbox::launcher::live::{Launch, reap_status};
use crate::sandbox::launcher::steps::StepLaunch;
use crate::sys::{SysError, failed};

/// Events taken from the kernel at a time.
const EVENTS_MAX: usize = 64;

/// Who can speak to the launcher.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    Service,
    /// The socket of a zygote.
    Zygote(u64),
    /// The socket of a sandbox's pid 1.
    Sandbox(u64),
    /// The death of a sandbox's pid 1.
    Process(u64),
    /// The death of a worker.
    Worker(u64),
}

/// Bits of an event's number that say what kind of source it is.
const KIND_SHIFT: u32 = 56;

impl Source {
    fn encode(self) -> u64 {
        let (kind, number) = match self {
            Source::Service => (0, 0),
            Source::Zygote(number) => (1, number),
            Source::Sandbox(number) => (2, number),
            Source::Process(number) => (3, number),
            Source::Worker(number) => (4, number),
        };
        kind << KIND_SHIFT | number
    }

    fn decode(code: u64) -> Option<Source> {
        let number = code & ((1 << KIND_SHIFT) - 1);
        match code >> KIND_SHIFT {
            0 => Some(Source::Service),
            1 => Some(Source::Zygote(number)),
            2 => Some(Source::Sandbox(number)),
            3 => Some(Source::Process(number)),
            4 => Some(Source::Worker(number)),
            _ => None,
        }
    }
}

/// What the launcher waits on.
pub(crate) struct Poller(OwnedFd);

impl Poller {
    pub(super) fn new() -> Result<Poller, SysError> {
        epoll::create(epoll::CreateFlags::CLOEXEC).map(Poller).map_err(failed("make", "a poller"))
    }

    /// Waits for `descriptor` too, until it is closed everywhere or removed.
    pub(super) fn add(&self, descriptor: &OwnedFd, source: Source) -> Result<(), SysError> {
        let data = epoll::EventData::new_u64(source.encode());
        epoll::add(&self.0, descriptor, data, epoll::EventFlags::IN).map_err(failed("watch", format!("{source:?}")))
    }

    pub(super) fn remove(&self, descriptor: impl AsFd) {
        // What is not watched need not be removed.
        let _ = epoll::delete(&self.0, descriptor);
    }

    fn wait(&self, until: Option<Instant>) -> Result<Vec<Source>, SysError> {
        let mut events = Vec::with_capacity(EVENTS_MAX);
        let timeout = until.map(|until| until.saturating_duration_since(Instant::now()));
        let timeout = timeout.map(|timeout| rustix::event::Timespec {
            tv_sec: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(timeout.subsec_nanos()),
        });
        match epoll::wait(&self.0, rustix::buffer::spare_capacity(&mut events), timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(failed("wait for", "events")(error)),
        }
        Ok(events.iter().filter_map(|event| Source::decode(event.data.u64())).collect())
    }
}

impl Launcher {
    /// Works until the service is gone, and leaves nothing behind however the work ended.
    pub(super) fn run(mut self) -> Result<(), SysError> {
        let worked = self.work();
        self.end_all().and(worked)
    }

    fn work(&mut self) -> Result<(), SysError> {
        loop {
            let rested = if self.is_quiet() { self.renew_places() } else { None };
            let due = [self.keep_time()?, rested].into_iter().flatten().min();
            let events = self.poller.wait(self.next_wake(due))?;
            for source in &events {
                if !self.handle(*source)? {
                    return Ok(());
                }
            }
            self.dispatch_waiting()?;
            if events.is_empty() && self.is_quiet() && !self.tear_one_down() && !self.adjust_pool() {
                self.tell_census()?;
                self.is_settled = true;
            }
        }
    }

    /// When to look up even if nobody speaks: at once while there is work that may be done now.
    fn next_wake(&self, due: Option<Instant>) -> Option<Instant> {
        let now = Instant::now();
        let work = match (self.is_settled, self.is_quiet()) {
            (true, _) => None,
            (false, true) => Some(now),
            (false, false) => Some(now + QUIET),
        };
        match (work, due) {
            (Some(work), Some(due)) => Some(work.min(due)),
            (work, due) => work.or(due),
        }
    }

    /// Hears one source; false when the service is gone.
    fn handle(&mut self, source: Source) -> Result<bool, SysError> {
        self.is_settled = false;
        match source {
            Source::Service => return self.hear_service(),
            Source::Zygote(number) => self.zygote_speaks(number)?,
            Source::Sandbox(number) => {
                self.sandbox_speaks(number)?;
            }
            Source::Process(number) => {
                // Its last word was sent before it died: it is heard first.
                while self.sandbox_speaks(number)? {}
                self.died(number)?;
            }
            Source::Worker(number) => self.worker_died(number)?,
        }
        Ok(true)
    }

    fn hear_service(&mut self) -> Result<bool, SysError> {
        let received = receive::<Request>(&self.service, &mut self.buffer).map_err(failed("hear", "the service"))?;
        let Some((request, mut descriptors)) = received else { return Ok(false) };
        match request {
            Request::Launch { token, spec, has_files, has_artifacts, lent } => {
                self.dispatch(Launch { token, spec: *spec, has_files, has_artifacts, descriptors, lent })?;
            }
            Request::Follow { number, token, cpu_time_ms, cpu_milli } => {
                self.follow(number, token, cpu_time_ms, cpu_milli)?;
            }
            Request::Done { number, was_used } => self.done(number, was_used)?,
            Request::Forget { number } => self.forget(number)?,
            Request::Stop { token, reason } => self.stop(token, reason)?,
            Request::Unpack { token } => self.unpack(token, descriptors.pop())?,
            Request::Remove { token, layer } => self.remove_layer(token, &layer)?,
            Request::Look { token, look } => self.look(token, look, descriptors.pop())?,
            Request::Step { token, layer, spec, has_files, terms, mounts, has_secrets } => {
                let spec = *spec;
                self.step(StepLaunch { token, layer, spec, has_files, terms, mounts, has_secrets, descriptors })?;
            }
            Request::Place { token, base, order } => self.place(token, base, *order, descriptors)?,
            Request::MeasureCache { token, folder } => self.measure_cache(token, &folder)?,
            Request::RemoveCache { token, folder } => self.remove_cache(token, &folder)?,
        }
        Ok(true)
    }

    fn zygote_speaks(&mut self, number: u64) -> Result<(), SysError> {
        let mut buffer = std::mem::take(&mut self.buffer);
        let heard = self.control_of_zygote(number).map(|control| receive::<ZygoteReply>(control, &mut buffer));
        self.buffer = buffer;
        match heard {
            Some(Ok(Some((reply, mut descriptors)))) => self.hear_zygote(number, reply, descriptors.pop()),
            Some(Ok(None) | Err(_)) => self.dismiss_zygote(number),
            None => Ok(()),
        }
    }

    /// Hears one word of a sandbox, if there is one; false when there is none, now or ever.
    fn sandbox_speaks(&mut self, number: u64) -> Result<bool, SysError> {
        let mut buffer = std::mem::take(&mut self.buffer);
        let heard = self.control_of(number).map(|control| receive::<InitReply>(control, &mut buffer));
        self.buffer = buffer;
        match heard {
            Some(Ok(Some((reply, _)))) => {
                self.hear_init(number, reply)?;
                Ok(true)
            }
            // The end of the conversation, or one that makes no sense: the death of the process says the rest.
            Some(Ok(None) | Err(_)) => {
                if let Some(control) = self.control_of(number) {
                    self.poller.remove(control);
                }
                Ok(false)
            }
            None => Ok(false),
        }
    }

    fn worker_died(&mut self, number: u64) -> Result<(), SysError> {
        let Some(worker) = self.workers.remove(&number) else { return Ok(()) };
        let is_killed = reap_status(worker.process.as_fd())?;
        self.finish_worker(worker, is_killed)
    }

    fn tell_census(&mut self) -> Result<(), SysError> {
        let (live, warm) = self.count();
        let census = (live, warm, self.warm_hits, self.cold_starts);
        if census == self.census_told {
            return Ok(());
        }
        self.census_told = census;
        self.reply(&Reply::Census { live, warm, warm_hits: self.warm_hits, cold_starts: self.cold_starts })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_survives_its_way_through_the_kernel() {
        for source in [
            Source::Service,
            Source::Zygote(1),
            Source::Sandbox(u64::from(u32::MAX)),
            Source::Process(7),
            Source::Worker(1 << 40),
        ] {
            assert_eq!(Source::decode(source.encode()), Some(source));
        }
        assert_eq!(Source::decode(9 << KIND_SHIFT), None);
    }
}
