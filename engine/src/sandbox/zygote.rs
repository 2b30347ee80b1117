//! A zygote: a process whose mounts already are an image's, from which the sandboxes of that image are cloned.
//!
//! It is small and has one thread, holds nothing of the host's tree, and does nothing but clone. The launcher, not
//! the zygote, is the parent of what it makes.

use std::os::fd::{AsFd, OwnedFd};
use std::time::Instant;

use rustix::thread::set_name;

use crate::isolation::mounts;
use crate::isolation::seccomp::Filter;
use crate::sandbox::descriptors;
use crate::sandbox::handshake::{ZygoteReply, ZygoteRequest, message_buffer, receive, send};
use crate::sandbox::init::{self, Birth, Terms, die_with_launcher};
use crate::spec::LayerId;
use crate::sys::{self, Fork, SysError, failed, in_one_line};

/// The namespaces that a sandbox is born into; network, control group and user namespace follow later.
pub(crate) const BIRTH_FLAGS: i32 = libc::CLONE_NEWNS | libc::CLONE_NEWPID | libc::CLONE_NEWUTS | libc::CLONE_NEWIPC;
/// Descriptors that come with every request, before those of the control group.
const FIXED_DESCRIPTORS: usize = 3;

/// Lives the whole life of a zygote. Never returns: the process must not fall back into the launcher's code.
pub(crate) fn live(control: OwnedFd, layers_folder: OwnedFd, layers: &[LayerId], filter: &Filter) -> ! {
    // Without an answer the launcher sees the end of the conversation, and fails what waits for it.
    let code = match run(control, layers_folder, layers, filter) {
        Ok(()) => 0,
        Err(_) => 1,
    };
    sys::exit_now(code)
}

fn run(control: OwnedFd, layers_folder: OwnedFd, layers: &[LayerId], filter: &Filter) -> Result<(), SysError> {
    // The launcher's sockets first: were it to die now, the service must see it.
    let mut kept = descriptors::keep_only(vec![control, layers_folder])?.into_iter();
    die_with_launcher()?;
    let _ = set_name(c"ampoule-zygote");
    let (Some(control), Some(layers_folder)) = (kept.next(), kept.next()) else { return Ok(()) };
    let names: Vec<&str> = layers.iter().map(LayerId::hex).collect();
    let entered = mounts::enter_zygote_tree(layers_folder.as_fd(), &names);
    drop(layers_folder);
    if let Err(error) = entered {
        let reason = in_one_line(&error);
        return send(&control, &ZygoteReply::NotReady { reason }, &[]).map_err(failed("answer", "the launcher"));
    }
    send(&control, &ZygoteReply::Ready, &[]).map_err(failed("answer", "the launcher"))?;
    serve(&control, filter)
}

fn serve(control: &OwnedFd, filter: &Filter) -> Result<(), SysError> {
    let mut buffer = message_buffer();
    while let Some((request, descriptors)) =
        receive::<ZygoteRequest>(control, &mut buffer).map_err(failed("hear", "the launcher"))?
    {
        let ZygoteRequest::Prepare { number, .. } = &request;
        let number = *number;
        let began = Instant::now();
        match clone_sandbox(request, descriptors, filter) {
            Ok((pid, pidfd)) => {
                let clone_us = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
                send(control, &ZygoteReply::Cloned { number, pid, clone_us }, &[pidfd.as_fd()])
            }
            Err(error) => send(control, &ZygoteReply::Failed { number, reason: in_one_line(&error) }, &[]),
        }
        .map_err(failed("answer", "the launcher"))?;
    }
    Ok(())
}

fn clone_sandbox(
    request: ZygoteRequest,
    mut descriptors: Vec<OwnedFd>,
    filter: &Filter,
) -> Result<(i32, OwnedFd), SysError> {
    let ZygoteRequest::Prepare { frame, first_id, version_2, in_background, uplink, .. } = request;
    if descriptors.len() < FIXED_DESCRIPTORS {
        let missing = std::io::Error::from(std::io::ErrorKind::InvalidInput);
        return Err(failed("clone", "a sandbox without its descriptors")(missing));
    }
    let mut groups = descriptors.split_off(FIXED_DESCRIPTORS);
    let folder = if version_2 { groups.pop() } else { None };
    let fork = sys::fork_into((BIRTH_FLAGS | libc::CLONE_PARENT) as u64, 0, folder.as_ref().map(AsFd::as_fd));
    match fork.map_err(failed("clone", "a sandbox"))? {
        Fork::Parent { pid, pidfd } => Ok((pid, pidfd)),
        Fork::Child => {
            drop(folder);
            let mut fixed = descriptors.into_iter();
            let (Some(control), Some(user_namespace), Some(id_map)) = (fixed.next(), fixed.next(), fixed.next()) else {
                sys::exit_now(1)
            };
            let terms = Terms { first_id, in_background, uplink, filter };
            init::live(Birth { terms, frame, control, user_namespace, id_map, groups, step: None })
        }
    }
}
