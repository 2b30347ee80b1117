//! What a hostile program inside a sandbox gets is a refusal; and what holds it is seen from outside too.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::time::{Duration, Instant};

use ampoule_client::types::{EndingKind, Job, JobFile, JobRequest, Writable};
use ampoule_tests::service::{command, kind, shell, stderr, stdout};
use ampoule_tests::{Service, host, patience};

/// Makes the attempts in one sandbox and tells what each came to: `OK`, an error's name or a signal's.
fn attempts(service: &Service, user: &str, names: &[&str]) -> BTreeMap<String, String> {
    let mut request = command(&["inside", "try"]);
    request.argv.extend(names.iter().map(|&name| name.to_owned()));
    request.user = Some(user.to_owned());
    let job = service.run(&request);
    assert_eq!(kind(&job), EndingKind::Exited, "{:?} {}", job.ending, stderr(&job));
    let results: BTreeMap<String, String> = stdout(&job)
        .lines()
        .filter_map(|line| line.split_once(' '))
        .map(|(a, b)| (a.to_owned(), b.to_owned()))
        .collect();
    for name in names {
        assert!(results.contains_key(*name), "`{name}` gave no answer: {results:?}");
    }
    results
}

/// Every attempt is refused, for the image's root as well as for an ordinary user.
fn check_refused(names: &[&str]) {
    let service = Service::start();
    for user in ["root", "worker"] {
        let results = attempts(&service, user, names);
        let worked: Vec<_> =
            results.iter().filter(|(_, result)| *result == "OK" || result.starts_with("UNKNOWN")).collect();
        assert!(worked.is_empty(), "as {user}: {worked:?}");
    }
}

/// Every attempt gives exactly this.
fn check_result(names: &[&str], expected: &[&str]) {
    let service = Service::start();
    for (name, result) in attempts(&service, "root", names) {
        assert!(expected.contains(&result.as_str()), "{name}: {result}, not one of {expected:?}");
    }
}

#[test]
fn nothing_can_be_mounted_unmounted_or_remounted() {
    check_refused(&[
        "mount_tmpfs",
        "mount_bind",
        "mount_proc",
        "remount_root_writable",
        "remount_proc_writable",
        "umount_proc",
        "fsopen",
        "open_tree",
        "move_mount",
        "mount_setattr",
        "pivot_root",
    ]);
}

#[test]
fn the_root_cannot_be_changed_or_escaped() {
    check_refused(&["chroot", "chroot_escape", "root_of_init", "cwd_of_init", "open_by_handle"]);
}

#[test]
fn no_namespace_can_be_made_or_joined() {
    check_refused(&[
        "unshare_user",
        "unshare_mount",
        "unshare_pid",
        "unshare_network",
        "unshare_ipc",
        "unshare_uts",
        "unshare_cgroup",
        "clone_user",
        "clone_network",
        "setns",
        "setns_of_init",
        "sethostname",
    ]);
}

#[test]
fn other_processes_cannot_be_traced_read_or_robbed() {
    check_refused(&[
        "ptrace_init",
        "ptrace_seize_init",
        "read_memory_of_init",
        "open_memory_of_init",
        "take_descriptor_of_init",
        "program_of_init",
        "descriptors_of_init",
        "environment_of_init",
        "priority_of_init",
        "kcmp",
    ]);
}

#[test]
fn the_first_process_of_a_sandbox_cannot_be_killed_from_inside() {
    let service = Service::start();
    let job = service.run(&shell("kill -9 1; kill -STOP 1; inside try kill_init stop_init >/dev/null; echo alive"));
    assert_eq!((kind(&job), stdout(&job)), (EndingKind::Exited, "alive\n"));
}

#[test]
fn kernel_settings_cannot_be_written() {
    check_refused(&[
        "write_core_pattern",
        "write_hostname",
        "write_ip_forward",
        "write_sysrq",
        "write_oom_score",
        "write_uid_map",
        "write_attr",
        "settimeofday",
        "clock_settime",
        "adjtimex",
        "swapon",
        "acct",
        "quotactl",
        "reboot",
    ]);
}

#[test]
fn no_code_can_be_loaded_into_the_kernel() {
    check_refused(&["init_module", "finit_module", "kexec_load", "bpf", "iopl", "ioperm", "modify_ldt"]);
}

#[test]
fn devices_can_be_neither_made_nor_opened() {
    check_refused(&[
        "mknod_memory",
        "mknod_disk",
        "mknod_null",
        "open_dev_mem",
        "open_dev_kmsg",
        "read_kcore",
        "read_kmsg",
        "kernel_log",
        "terminal_injection",
        "vhangup",
        "write_dev",
        "chmod_dev_null",
    ]);
}

#[test]
fn kernel_surfaces_with_a_history_are_closed() {
    check_refused(&[
        "keyctl",
        "add_key",
        "request_key",
        "io_uring",
        "perf_event_open",
        "userfaultfd",
        "name_to_handle",
        "fanotify",
        "personality_legacy",
    ]);
}

#[test]
fn legacy_ways_into_the_kernel_are_closed() {
    check_result(&["x32_call", "32_bit_call"], &["SIGSYS", "SIGSEGV", "ENOSYS", "EPERM"]);
}

#[test]
fn a_call_that_the_filter_does_not_know_is_not_implemented() {
    check_result(&["unknown_call", "clone3"], &["ENOSYS"]);
}

#[test]
fn sockets_that_reach_hardware_hosts_or_the_kernel_are_refused() {
    check_refused(&[
        "raw_socket",
        "raw_socket_6",
        "packet_socket",
        "vsock",
        "alg_socket",
        "bluetooth_socket",
        "netlink_audit",
    ]);
}

#[test]
fn nothing_outside_can_be_reached_over_the_network() {
    check_result(&["connect_outside"], &["ENETUNREACH"]);
    check_result(&["connect_loopback"], &["ECONNREFUSED"]);
}

#[test]
fn rights_cannot_be_raised() {
    let service = Service::start();
    let for_both = [
        "setgroups",
        "capset",
        "ambient_capability",
        "clear_no_new_privileges",
        "raise_open_files",
        "real_time",
        "negative_nice",
    ];
    let for_a_user = [&for_both[..], &["setuid_root", "setgid_root"]].concat();
    for (user, names) in [("root", &for_both[..]), ("worker", &for_a_user[..])] {
        let results = attempts(&service, user, names);
        let worked: Vec<_> = results.iter().filter(|(_, result)| *result == "OK").collect();
        assert!(worked.is_empty(), "as {user}: {worked:?}");
    }
}

#[test]
fn the_root_file_system_is_read_only_in_every_way() {
    check_refused(&[
        "write_root",
        "write_passwd",
        "truncate_passwd",
        "unlink_passwd",
        "chmod_root",
        "chown_root",
        "touch_root",
        "setxattr_root",
        "link_root",
        "reopen_writable",
        "map_shared_writable",
    ]);
}

#[test]
fn files_of_the_image_cannot_be_leased_or_watched() {
    // Several sandboxes share these inodes: a lease or a watch would tell one what another does.
    check_refused(&["lease_root", "watch_root"]);
}

#[test]
fn ordinary_programs_find_what_they_need() {
    let service = Service::start();
    let names = [
        "write_temporary",
        "write_dev_null",
        "read_random",
        "fork",
        "memfd",
        "unix_socket_pair",
        "listen_loopback",
        "thread",
        "shared_memory",
        "lock_temporary",
        "read_own_proc",
    ];
    for user in ["root", "worker", "12345:54321"] {
        let results = attempts(&service, user, &names);
        let refused: Vec<_> = results.iter().filter(|(_, result)| *result != "OK").collect();
        assert!(refused.is_empty(), "as {user}: {refused:?}");
    }
}

#[test]
fn a_job_has_no_capability_no_way_to_new_ones_and_a_filter() {
    let service = Service::start();
    let (job, pid) = sleeping(&service, "sleep");
    for field in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        let value = host::status_field(pid, field).expect("the process lives");
        assert_eq!(u64::from_str_radix(&value, 16), Ok(0), "{field}");
    }
    assert_eq!(host::status_field(pid, "NoNewPrivs").as_deref(), Some("1"));
    assert_eq!(host::status_field(pid, "Seccomp").as_deref(), Some("2"));
    // glibc's posix_spawn leaves its own two signals, 32 and 33, ignored in whatever descends from it.
    let ignored = host::status_field(pid, "SigIgn").and_then(|mask| u64::from_str_radix(&mask, 16).ok());
    assert_eq!(ignored.map(|mask| mask & !(0b11 << 31)), Some(0));
    assert_eq!(host::status_field(pid, "SigBlk").as_deref(), Some("0000000000000000"));
    cancel(&service, &job);
}

#[test]
fn a_job_shares_no_namespace_with_the_host_or_with_another_job() {
    let service = Service::start();
    let (first, first_pid) = sleeping(&service, "sleep");
    let (second, second_pid) = sleeping_besides(&service, &[first_pid]);
    for namespace in ["user", "pid", "mnt", "ipc", "uts", "net", "cgroup"] {
        let of = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/{namespace}")).expect("the process lives");
        let all = BTreeSet::from([of("self"), of(&first_pid.to_string()), of(&second_pid.to_string())]);
        assert_eq!(all.len(), 3, "{namespace}: {all:?}");
    }
    cancel(&service, &first);
    cancel(&service, &second);
}

#[test]
fn jobs_alive_together_have_distinct_ranges_of_ids_that_the_host_does_not_use() {
    let service = Service::start();
    let (first, first_pid) = sleeping(&service, "sleep");
    let (second, second_pid) = sleeping_besides(&service, &[first_pid]);
    let mut ranges = Vec::new();
    for pid in [first_pid, second_pid] {
        for map in ["uid_map", "gid_map"] {
            let text = fs::read_to_string(format!("/proc/{pid}/{map}")).expect("the process lives");
            let numbers: Vec<u64> = text.split_whitespace().map(|number| number.parse().expect("a number")).collect();
            let [0, outside, 65_536] = numbers[..] else { panic!("{map}: {text}") };
            assert!(outside >= 65_536, "{map}: {text}");
            ranges.push(outside);
        }
    }
    assert!(ranges[0].abs_diff(ranges[2]) >= 65_536 && ranges[1].abs_diff(ranges[3]) >= 65_536, "{ranges:?}");
    cancel(&service, &first);
    cancel(&service, &second);
}

fn sleeping(service: &Service, program: &str) -> (Job, i32) {
    assert_eq!(program, "sleep");
    sleeping_besides(service, &[])
}

/// A job that sleeps, and the host's number of its process, which is none of those known.
fn sleeping_besides(service: &Service, known: &[i32]) -> (Job, i32) {
    let job = service.submit(&command(&["sleep", "1000"]));
    let deadline = Instant::now() + patience(Duration::from_secs(20));
    loop {
        let below = host::descendants(service.pid().as_raw());
        let fresh = below.iter().find(|process| process.name == "sleep" && !known.contains(&process.pid));
        if let Some(process) = fresh {
            return (job, process.pid);
        }
        assert!(Instant::now() < deadline, "no sleeping process: {below:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn cancel(service: &Service, job: &Job) {
    service.post(&format!("/v1/jobs/{}/cancel", job.id), &serde_json::json!({}));
    service.wait(&job.id);
}

#[test]
fn a_job_inherits_no_descriptor_but_its_three() {
    let service = Service::start();
    for _ in 0..4 {
        let job = service.run(&command(&["inside", "descriptors"]));
        let numbers: Vec<&str> = stdout(&job).lines().filter_map(|line| line.split(' ').next()).collect();
        assert_eq!(numbers, ["0", "1", "2"], "{}", stdout(&job));
    }
}

#[test]
fn a_working_directory_cannot_be_a_leaked_descriptor() {
    let service = Service::start();
    let mut folders: Vec<String> = (0..24).map(|number| format!("/proc/self/fd/{number}")).collect();
    folders.extend(["/proc/self/cwd", "/proc/1/cwd", "/proc/1/root", "/proc/self/root"].map(str::to_owned));
    for cwd in folders {
        let request = JobRequest {
            cwd: Some(cwd.clone()),
            ..shell("pwd -P; ls -a; ls -a ../../../..; cat ../../../../../../etc/hostname")
        };
        let answer = service.post("/v1/jobs?wait=60", &request);
        if answer.status >= 400 {
            continue;
        }
        let job: Job = answer.json();
        let wrote = job.stdout.as_ref().and_then(|output| output.text.clone()).unwrap_or_default();
        let saw_only_the_image = wrote.is_empty() || wrote.ends_with("image\n");
        assert!(saw_only_the_image && !wrote.contains("(unreachable)"), "{cwd}: {:?}\n{wrote}", job.ending);
    }
}

#[test]
fn a_script_cannot_run_the_program_that_started_it() {
    let service = Service::start();
    for interpreter in ["/proc/self/exe", "/proc/1/exe"] {
        let request = JobRequest {
            writable: vec![Writable { path: "/work".to_owned(), size_bytes: 1 << 20, inodes: None }],
            files: vec![JobFile {
                path: "/work/script".to_owned(),
                content: Some(format!("#!{interpreter}\n")),
                mode: Some("0755".to_owned()),
                ..JobFile::default()
            }],
            ..command(&["/work/script"])
        };
        let job = service.run(&request);
        let ran_fine = job.ending.as_ref().is_some_and(|ending| ending.exit_code == Some(0));
        assert!(!ran_fine && kind(&job) != EndingKind::Failed, "{:?}", job.ending);
        assert_eq!(stdout(&job), "");
    }
}

#[test]
fn a_set_user_id_program_gives_nothing() {
    let service = Service::start();
    for program in ["inside-setuid", "inside-setgid"] {
        let job = service.run(&JobRequest { user: Some("worker".to_owned()), ..command(&[program, "ids"]) });
        assert_eq!(stdout(&job), "uid 1000 gid 1000 euid 1000\n", "{program}");
    }
}

#[test]
fn owners_and_modes_of_the_image_hold() {
    let service = Service::start();
    let line = "stat -c '%u:%g %a %n' /root/private /home/worker /bin/busybox; cat /home/worker/private";
    let as_root = service.run(&shell(line));
    let expected = "0:0 600 /root/private\n1000:1000 700 /home/worker\n0:0 755 /bin/busybox\n";
    // The image's root has no capability, so another user's private file is closed to it.
    assert_eq!(stdout(&as_root), expected);
    assert!(stderr(&as_root).contains("Permission denied"), "{}", stderr(&as_root));
    let as_worker = service.run(&JobRequest {
        user: Some("worker".to_owned()),
        ..shell("id -un; cat ~/private; cat /root/private; echo $HOME")
    });
    assert_eq!(stdout(&as_worker), "worker\nof the worker\n/home/worker\n");
}

#[test]
fn nothing_of_a_job_is_left_for_the_next() {
    let service = Service::start();
    // More rounds than there are slots, so that each is used again.
    for round in 0..12 {
        let line = "ls -A /tmp /dev/shm; cat /proc/sys/kernel/ns_last_pid >/dev/null; ps -o comm | grep -c '^sleep'; \
                    echo mine >/tmp/mine; echo mine >/dev/shm/mine; sleep 1000 >/dev/null 2>&1 &";
        let job = service.run(&shell(line));
        assert_eq!(stdout(&job), "/dev/shm:\n\n/tmp:\n0\n", "round {round}: {}", stderr(&job));
    }
}

#[test]
fn a_job_sees_no_process_but_its_own() {
    let service = Service::start();
    let (other, _) = sleeping(&service, "sleep");
    let job = service.run(&shell("ls /proc | grep -c '^[0-9]'; ps -o args | grep -c 1000"));
    let lines: Vec<&str> = stdout(&job).lines().collect();
    let count: u32 = lines[0].parse().expect("a count");
    assert!(count <= 5, "{count} processes");
    cancel(&service, &other);
}

#[test]
fn a_job_sees_only_loopback_and_no_sysfs() {
    let service = Service::start();
    let job = service
        .run(&shell("sed -n 's/^ *\\([a-z0-9]*\\):.*/\\1/p' /proc/net/dev; ls -A /sys; cat /proc/net/unix | wc -l"));
    assert_eq!(stdout(&job), "lo\n1\n");
    let results = attempts(&service, "root", &["sysfs", "cgroupfs"]);
    assert!(results.values().all(|result| result != "OK"), "{results:?}");
}

#[test]
fn proc_tells_nothing_of_the_host() {
    let service = Service::start();
    let masked = ["kcore", "keys", "timer_list", "sched_debug", "latency_stats", "sysrq-trigger", "kmsg"];
    for path in masked {
        let job = service.run(&shell(&format!("[ -e /proc/{path} ] || exit 0; head -c 16 /proc/{path} | wc -c")));
        assert!(["", "0\n"].contains(&stdout(&job)), "/proc/{path}: {}", stdout(&job));
    }
    let job =
        service.run(&shell("ls -A /proc/acpi /proc/scsi 2>/dev/null; cat /proc/self/cgroup; cat /proc/self/mountinfo"));
    let text = stdout(&job);
    let state = service.state();
    assert!(!text.contains(&*state.to_string_lossy()), "the host's paths show:\n{text}");
    assert!(!text.contains("ampoule-"), "the host's control groups show:\n{text}");
}

#[test]
fn the_environment_is_empty_unless_asked_for() {
    let service = Service::start();
    let names = |job: &Job| -> BTreeSet<String> {
        stdout(job).lines().filter_map(|line| line.split('=').next()).map(str::to_owned).collect()
    };
    let job = service.run(&command(&["/bin/env"]));
    let usual: BTreeSet<String> = ["HOME", "PATH", "HOSTNAME"].map(str::to_owned).into();
    assert!(names(&job).is_subset(&usual), "{}", stdout(&job));
    let asked = service.run(&JobRequest {
        env: BTreeMap::from([("NAME".to_owned(), "two words = 1".to_owned())]),
        ..command(&["/bin/env"])
    });
    assert!(stdout(&asked).lines().any(|line| line == "NAME=two words = 1"), "{}", stdout(&asked));
}

#[test]
fn the_host_name_is_not_that_of_the_host() {
    let service = Service::start();
    let job = service.run(&command(&["hostname"]));
    let of_the_host = fs::read_to_string("/proc/sys/kernel/hostname").expect("/proc is mounted");
    assert_ne!(stdout(&job), of_the_host);
}

#[test]
fn the_service_has_no_privilege_and_the_launcher_one_thread() {
    let service = Service::start();
    let pid = service.pid().as_raw();
    for field in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        let value = host::status_field(pid, field).expect("the service lives");
        assert_eq!(u64::from_str_radix(&value, 16), Ok(0), "{field}");
    }
    let ids = host::status_field(pid, "Uid").expect("the service lives");
    assert!(ids.split('\t').all(|id| id != "0"), "{ids}");
    assert_eq!(host::status_field(pid, "NoNewPrivs").as_deref(), Some("1"));
    let launcher = service.launcher().as_raw();
    assert_eq!(host::status_field(launcher, "Threads").as_deref(), Some("1"));
}

#[test]
fn the_state_folder_is_closed_to_everybody_else() {
    use std::os::unix::fs::{FileTypeExt, PermissionsExt};
    let service = Service::start();
    let mode = fs::metadata(service.state()).expect("it exists").permissions().mode();
    assert_eq!(mode & 0o077, 0, "{mode:o}");
    let socket = fs::metadata(service.socket()).expect("it exists");
    assert!(socket.file_type().is_socket());
    assert_eq!(socket.permissions().mode() & 0o777, 0o660);
}
