//! The filters in the kernel: what is refused answers with its errno, and ordinary software runs.
//! A filter holds for the thread that installs it and its children, so each test gives it a thread of its own.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Output};
use std::thread;

use nix::fcntl::AT_FDCWD;
use nix::sys::stat::{Mode, SFlag, makedev, mknodat};

use crate::image::layer::{self, UnpackLimits};
use crate::isolation::seccomp::{Profile, compile, numbers};

/// Calls that a job is refused: name, arguments in perl, errno. Without a filter each would end otherwise, and do
/// nothing: the arguments are wrong on purpose.
const REFUSED: [(&str, &str, i32); 51] = [
    ("acct", "$none", libc::EPERM),
    ("add_key", "1, 1, 1, 0, 0", libc::EPERM),
    ("adjtimex", "1", libc::EPERM),
    ("bpf", "-1, 0, 0", libc::EPERM),
    ("chroot", "$none", libc::EPERM),
    ("clock_settime", "-1, 1", libc::EPERM),
    ("clone", "0x10000000 | 0x800, 0, 0, 0, 0", libc::EPERM),
    ("clone", "0x40000000 | 0x800, 0, 0, 0, 0", libc::EPERM),
    ("clone3", "0, 0", libc::ENOSYS),
    ("delete_module", "1, 0", libc::EPERM),
    ("fanotify_init", "-1, 0", libc::EPERM),
    ("fcntl", "-1, 1024, 0", libc::EPERM),
    ("fcntl", "-1, 1026, 0", libc::EPERM),
    ("finit_module", "-1, $none, 0", libc::EPERM),
    ("fsopen", "1, 0", libc::EPERM),
    ("inotify_init1", "-1", libc::ENOSYS),
    ("io_setup", "0, 1", libc::ENOSYS),
    ("io_uring_setup", "0, 0", libc::EPERM),
    ("ioctl", "-1, 0x5412, 0", libc::EPERM),
    ("ioctl", "-1, 0xff00005412, 0", libc::EPERM),
    ("kcmp", "-1, -1, -1, 0, 0", libc::EPERM),
    ("kexec_load", "0, 0, 0, -1", libc::EPERM),
    ("keyctl", "-1, 0, 0, 0, 0", libc::EPERM),
    ("memfd_secret", "-1", libc::ENOSYS),
    ("mincore", "1, 1, 1", libc::ENOSYS),
    ("mknodat", "-1, $none, 0x2000, 0x103", libc::EPERM),
    ("mount", "1, 1, 1, 0, 1", libc::EPERM),
    ("mount_setattr", "-1, $none, 0, 0, 0", libc::EPERM),
    ("name_to_handle_at", "-1, $none, 1, 1, 0", libc::EPERM),
    ("open_by_handle_at", "-1, 1, 0", libc::EPERM),
    ("open_tree", "-1, $none, 0", libc::EPERM),
    ("perf_event_open", "1, -1, -1, -1, 0", libc::EPERM),
    ("personality", "0x0400000", libc::EPERM),
    ("pidfd_getfd", "-1, -1, 0", libc::EPERM),
    ("pivot_root", "1, 1", libc::EPERM),
    ("process_vm_readv", "-1, 0, 0, 0, 0, 0", libc::EPERM),
    ("ptrace", "-1, 0, 0, 0", libc::EPERM),
    ("quotactl", "-1, 0, 0, 0", libc::EPERM),
    ("reboot", "0, 0, 0, 0", libc::EPERM),
    ("setns", "-1, 0", libc::EPERM),
    ("socket", "40, 1, 0", libc::EAFNOSUPPORT),     // AF_VSOCK
    ("socket", "38, 5, 0", libc::EAFNOSUPPORT),     // AF_ALG
    ("socket", "17, 3, 0", libc::EAFNOSUPPORT),     // AF_PACKET
    ("socket", "16, 3, 4", libc::EAFNOSUPPORT),     // NETLINK_SOCK_DIAG
    ("socket", "2, 3, 1", libc::EPERM),             // raw ICMP
    ("socket", "2, 1, 132", libc::EPROTONOSUPPORT), // SCTP
    ("swapoff", "1", libc::EPERM),
    ("syslog", "-1, 0, 0", libc::EPERM),
    ("umount2", "$none, -1", libc::EPERM),
    ("unshare", "0x10000000", libc::EPERM),
    ("userfaultfd", "-1", libc::EPERM),
];

#[test]
fn a_job_is_refused_what_reaches_past_its_sandbox() {
    check_errnos(Profile::Job, REFUSED.map(|(name, args, errno)| (number(name), args, errno)).to_vec());
}

#[test]
fn calls_that_are_unknown_or_x32_are_not_implemented() {
    let getpid = number("getpid");
    let unknown = [337, 400, 470, 511, 520, 0x4000_0000 | getpid, 0x7fff_ffff];
    check_errnos(Profile::Job, unknown.map(|number| (number, "0", libc::ENOSYS)).to_vec());
}

#[test]
fn a_call_of_another_architecture_kills_the_process() {
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("legacy");
    fs::write(&program, legacy_program()).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o700)).unwrap();
    assert!(Command::new(&program).status().unwrap().code().is_some(), "without a filter it exits");
    let status = filtered(Profile::Job, || Command::new(&program).status().unwrap());
    assert_eq!(status.signal(), Some(libc::SIGSYS), "{status}");
}

#[test]
fn a_job_can_use_threads_files_and_local_sockets() {
    filtered(Profile::Job, || {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let client = thread::spawn(move || TcpStream::connect(address).unwrap().write_all(b"stream").unwrap());
        let mut received = String::new();
        listener.accept().unwrap().0.read_to_string(&mut received).unwrap();
        client.join().unwrap();
        assert_eq!(received, "stream");
        UdpSocket::bind("127.0.0.1:0").unwrap();
        UnixStream::pair().unwrap();
        tempfile::tempfile().unwrap().sync_all().unwrap();
    });
}

/// Threads, the resolver, the list of interfaces (netlink), a child, shared memory, a timer: as a C library makes them.
const ORDINARY: &str = r#"
#define _GNU_SOURCE
#include <errno.h>
#include <net/if.h>
#include <netdb.h>
#include <pthread.h>
#include <spawn.h>
#include <stdio.h>
#include <sys/inotify.h>
#include <sys/mman.h>
#include <sys/sem.h>
#include <sys/timerfd.h>
#include <sys/wait.h>
#include <unistd.h>
#define CHECK(what) if (!(what)) { perror(#what); return 1; }
extern char **environ;
static void *answer(void *question) { return question; }
int main(void) {
    pthread_t thread; void *result = 0;
    CHECK(pthread_create(&thread, 0, answer, &thread) == 0);
    CHECK(pthread_join(thread, &result) == 0 && result == &thread);
    struct addrinfo *addresses = 0;
    CHECK(getaddrinfo("127.0.0.1", "80", 0, &addresses) == 0);
    CHECK(if_nameindex() != 0);
    pid_t child; int status = 0; char *arguments[] = {"sh", "-c", "exit 7", 0};
    CHECK(posix_spawn(&child, "/bin/sh", 0, 0, arguments, environ) == 0);
    CHECK(waitpid(child, &status, 0) == child && WEXITSTATUS(status) == 7);
    CHECK(memfd_create("m", MFD_CLOEXEC) >= 0);
    CHECK(memfd_create("m", MFD_HUGETLB) < 0 && errno == ENOSYS);
    CHECK(mmap(0, 1 << 21, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB, -1, 0) == MAP_FAILED);
    CHECK(errno == ENOMEM);
    CHECK(mmap(0, 4096, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) != MAP_FAILED);
    int semaphores = semget(IPC_PRIVATE, 1, 0600);
    CHECK(semaphores >= 0 && semctl(semaphores, 0, IPC_RMID) == 0);
    CHECK(timerfd_create(CLOCK_MONOTONIC, 0) >= 0);
    CHECK(inotify_init() < 0 && errno == ENOSYS);
    sync();
    puts("ordinary");
    return 0;
}
"#;

#[test]
fn a_job_can_compile_a_program_and_run_it() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("ordinary.c"), ORDINARY).unwrap();
    let output = filtered(Profile::Job, || {
        run("cc", &["-pthread", "-o", "ordinary", "ordinary.c"], folder.path());
        run("./ordinary", &[], folder.path())
    });
    assert_eq!(output.stdout, b"ordinary\n");
}

#[test]
fn a_job_can_run_a_shell_with_pipes() {
    let output = filtered(Profile::Job, || run("sh", &["-c", "seq 1000 | sort -n | tail -n 1"], Path::new("/")));
    assert_eq!(output.stdout, b"1000\n");
}

#[test]
fn a_worker_can_unpack_a_layer_of_all_kinds_of_files() {
    let folder = tempfile::tempdir().unwrap();
    let root = fs::File::open(folder.path()).unwrap();
    let archive = layer_of_all_kinds();
    let unpacked =
        filtered(Profile::Worker, || layer::unpack(archive.as_slice(), root.as_fd(), UnpackLimits::default()));
    assert_eq!(unpacked.unwrap().entries, 8);
    assert_eq!(fs::read(folder.path().join("etc/link")).unwrap(), b"content");
    filtered(Profile::Worker, || layer::remove_tree(root.as_fd(), "etc")).unwrap();
    assert!(!folder.path().join("etc").exists());
}

/// A folder, a file with an attribute, links, a pipe and both marks of what a layer removes; compressed.
fn layer_of_all_kinds() -> Vec<u8> {
    let gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    let mut archive = tar::Builder::new(gzip);
    let header = |kind, size| {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(0o755);
        header.set_uid(rustix::process::getuid().as_raw().into());
        header.set_gid(rustix::process::getgid().as_raw().into());
        header.set_mtime(1_000_000_000);
        header.set_size(size);
        header
    };
    let mut add = |name: &str, kind, target: &str, content: &[u8]| {
        let mut header = header(kind, content.len() as u64);
        header.set_link_name_literal(target).unwrap();
        archive.append_data(&mut header, name, content).unwrap();
    };
    add("etc", tar::EntryType::Directory, "", b"");
    add("etc/file", tar::EntryType::Regular, "", b"content");
    add("etc/link", tar::EntryType::Symlink, "file", b"");
    add("etc/same", tar::EntryType::Link, "etc/file", b"");
    add("etc/pipe", tar::EntryType::Fifo, "", b"");
    add("etc/.wh.gone", tar::EntryType::Regular, "", b"");
    add("var/.wh..wh..opq", tar::EntryType::Regular, "", b"");
    archive.append_pax_extensions([("SCHILY.xattr.user.note", b"text".as_slice())]).unwrap();
    archive.append_data(&mut header(tar::EntryType::Regular, 0), "noted", [].as_slice()).unwrap();
    archive.into_inner().unwrap().finish().unwrap()
}

#[test]
fn a_worker_can_make_files_but_not_reach_out() {
    let folder = tempfile::tempdir().unwrap();
    filtered(Profile::Worker, || {
        let path = folder.path();
        fs::create_dir(path.join("etc")).unwrap_err(); // mkdir: workers use mkdirat
        nix::sys::stat::mkdirat(AT_FDCWD, &path.join("etc"), Mode::S_IRWXU).unwrap();
        fs::write(path.join("etc/passwd"), "root").unwrap();
        mknodat(AT_FDCWD, &path.join("etc/fifo"), SFlag::S_IFIFO, Mode::S_IRWXU, 0).unwrap();
        mknodat(AT_FDCWD, &path.join("etc/gone"), SFlag::S_IFCHR, Mode::empty(), makedev(0, 0)).unwrap();
        let device = mknodat(AT_FDCWD, &path.join("etc/null"), SFlag::S_IFCHR, Mode::empty(), makedev(1, 3));
        assert_eq!(device, Err(nix::Error::EPERM));
        assert_eq!(TcpListener::bind("127.0.0.1:0").unwrap_err().raw_os_error(), Some(libc::EPERM));
        assert_eq!(UnixStream::pair().unwrap_err().raw_os_error(), Some(libc::EPERM));
        assert_eq!(thread::Builder::new().spawn(|| ()).unwrap_err().raw_os_error(), Some(libc::EPERM));
        assert_eq!(nix::unistd::chroot(path), Err(nix::Error::EPERM));
    });
}

/// Runs `work` in a thread behind the filter of `profile`.
fn filtered<T: Send>(profile: Profile, work: impl FnOnce() -> T + Send) -> T {
    let filter = compile(profile).unwrap();
    let behind_the_filter = move || {
        filter.install().unwrap();
        work()
    };
    thread::scope(|scope| scope.spawn(behind_the_filter).join()).expect("the thread behind the filter succeeds")
}

/// Makes the calls (number, arguments in perl, errno) behind the filter and compares the errnos.
fn check_errnos(profile: Profile, calls: Vec<(i64, &str, i32)>) {
    let one = |(number, args, _): &(i64, &str, i32)| {
        format!("$! = 0; print syscall({number}, {args}) == -1 ? $! + 0 : 0, qq(\\n);\n")
    };
    let script: String = ["my $none = '';\n".to_owned()].into_iter().chain(calls.iter().map(one)).collect();
    let output = filtered(profile, || run("perl", &["-e", &script], Path::new("/")));
    let found: Vec<i32> = String::from_utf8(output.stdout).unwrap().lines().map(|line| line.parse().unwrap()).collect();
    let wrong: Vec<_> = calls.iter().zip(&found).filter(|((_, _, errno), found)| errno != *found).collect();
    assert!(wrong.is_empty() && found.len() == calls.len(), "((number, arguments, expected), found): {wrong:?}");
}

fn run(program: &str, arguments: &[&str], folder: &Path) -> Output {
    let output = Command::new(program).args(arguments).current_dir(folder).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program}: {}: {errors}", output.status);
    output
}

fn number(name: &str) -> i64 {
    numbers::CALLS.iter().find(|(known, _)| *known == name).expect("the call has a name").1
}

/// The smallest x86_64 program that makes a 32-bit call: exit, by int 0x80.
fn legacy_program() -> Vec<u8> {
    const BASE: u64 = 0x40_0000;
    const HEADERS: u64 = 64 + 56;
    const CODE: [u8; 9] = [0xb8, 1, 0, 0, 0, 0x31, 0xdb, 0xcd, 0x80]; // mov eax, 1; xor ebx, ebx; int 0x80
    let mut program = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x3e\0\x01\0\0\0".to_vec();
    program.extend([BASE + HEADERS, 64, 0].map(u64::to_le_bytes).concat()); // entry, program headers, section headers
    program.extend(0_u32.to_le_bytes()); // flags
    program.extend([64_u16, 56, 1, 64, 0, 0].map(u16::to_le_bytes).concat()); // sizes and counts of headers
    program.extend([1_u32, 5].map(u32::to_le_bytes).concat()); // one segment to load, readable and executable
    let size = HEADERS + CODE.len() as u64;
    program.extend([0, BASE, BASE, size, size, 0x1000].map(u64::to_le_bytes).concat());
    program.extend(CODE);
    program
}
