//! A classic BPF machine for tests: runs a filter on a made-up call the way the kernel would.

use seccompiler::sock_filter;

use super::tree;

/// A call as a filter sees it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Call {
    pub(super) arch: u32,
    pub(super) number: u32,
    pub(super) args: [u64; 6],
}

/// How a filter ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct End {
    /// SECCOMP_RET_…
    pub(super) returned: u32,
    /// How many instructions were run.
    pub(super) steps: usize,
}

/// Runs `program` on `call`. A jump out of the program or an unknown instruction panics, as the kernel would refuse it.
pub(super) fn run(program: &[sock_filter], call: &Call) -> End {
    let mut accumulator = 0;
    let mut next = 0;
    for steps in 1.. {
        let sock_filter { code, jt, jf, k } = program[next];
        let branch = |taken: bool| usize::from(if taken { jt } else { jf });
        next += 1;
        match code {
            tree::LOAD => accumulator = load(call, k),
            tree::AND => accumulator &= k,
            tree::JUMP => next += k as usize,
            tree::JUMP_EQUAL => next += branch(accumulator == k),
            tree::JUMP_AT_LEAST => next += branch(accumulator >= k),
            tree::RETURN => return End { returned: k, steps },
            other => panic!("no such instruction: {other:#x}"),
        }
    }
    unreachable!("every jump goes forward, so the program ends")
}

fn load(call: &Call, offset: u32) -> u32 {
    match offset {
        tree::DATA_NUMBER => call.number,
        tree::DATA_ARCH => call.arch,
        _ => {
            let place = offset - tree::DATA_ARGUMENTS;
            let argument = call.args[(place / tree::DATA_ARGUMENT_SIZE) as usize];
            match place % tree::DATA_ARGUMENT_SIZE {
                0 => argument as u32,
                4 => (argument >> 32) as u32,
                _ => panic!("loads are aligned to 32 bits, not at {offset}"),
            }
        }
    }
}
