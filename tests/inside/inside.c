/*
 * What a hostile program would try from inside a sandbox, one direct system call an attempt; and a few loads.
 *
 *   inside try NAME...     for each name one line: NAME OK | NAME ERRNO | NAME SIGNAL-NUMBER
 *   inside list            the names of all attempts
 *   inside LOAD ARGUMENT   eat BYTES, spin SECONDS, children COUNT, threads COUNT, pattern BYTES, files COUNT,
 *                          interleave COUNT, descriptors, ignore-term, orphan SECONDS, detach, open PATH, lock SECONDS
 *
 * Built with `gcc -static -O2`, so that it depends on nothing in the image. It decides nothing: what an attempt
 * ought to give is said by the tests.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/bpf.h>
#include <linux/capability.h>
#include <linux/if_packet.h>
#include <linux/keyctl.h>
#include <linux/perf_event.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/fsuid.h>
#include <sys/inotify.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/file.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/time.h>
#include <sys/timex.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <time.h>
#include <unistd.h>

#define SYS_open_tree_ 428
#define SYS_move_mount_ 429
#define SYS_fsopen_ 430
#define SYS_pidfd_open_ 434
#define SYS_clone3_ 435
#define SYS_pidfd_getfd_ 438
#define SYS_mount_setattr_ 442

/* An attempt returns what its system call returned: below 0 means refused, with errno. */
typedef long (*attempt_function)(void);

static long open_and_close(const char *path, int flags) {
    int descriptor = open(path, flags, 0600);
    if (descriptor >= 0) close(descriptor);
    return descriptor;
}

static long write_to(const char *path, const char *text) {
    int descriptor = open(path, O_WRONLY);
    if (descriptor < 0) return -1;
    struct stat what;
    long result = write(descriptor, text, strlen(text));
    int saved = errno;
    /* What is masked is /dev/null by another name: it takes everything and does nothing. */
    if (fstat(descriptor, &what) == 0 && what.st_rdev == makedev(1, 3) && strcmp(path, "/dev/null") != 0) {
        result = -1;
        saved = ENODEV;
    }
    close(descriptor);
    errno = saved;
    return result;
}

static long socket_of(int family, int type, int protocol) { return socket(family, type, protocol); }

/* mounts and roots */
static long try_mount_tmpfs(void) { return mount("none", "/tmp", "tmpfs", 0, NULL); }
static long try_mount_bind(void) { return mount("/bin", "/tmp", NULL, MS_BIND, NULL); }
static long try_mount_proc(void) { return mount("proc", "/proc", "proc", 0, NULL); }
static long try_remount_root_writable(void) { return mount(NULL, "/", NULL, MS_REMOUNT | MS_BIND, NULL); }
static long try_remount_proc_writable(void) { return mount(NULL, "/proc", NULL, MS_REMOUNT | MS_BIND, NULL); }
static long try_umount_proc(void) { return umount2("/proc", MNT_DETACH); }
static long try_fsopen(void) { return syscall(SYS_fsopen_, "tmpfs", 0); }
static long try_open_tree(void) { return syscall(SYS_open_tree_, AT_FDCWD, "/", 1 /* OPEN_TREE_CLONE */); }
static long try_move_mount(void) { return syscall(SYS_move_mount_, AT_FDCWD, "/proc", AT_FDCWD, "/tmp", 0); }
static long try_mount_setattr(void) {
    uint64_t attributes[4] = {0, 1 /* MOUNT_ATTR_RDONLY cleared */, 0, 0};
    return syscall(SYS_mount_setattr_, AT_FDCWD, "/", 0, attributes, sizeof attributes);
}
static long try_pivot_root(void) { return syscall(SYS_pivot_root, "/tmp", "/tmp"); }
static long try_chroot(void) { return chroot("/tmp"); }
static long try_chroot_escape(void) {
    int outside = open("/", O_RDONLY | O_DIRECTORY);
    if (chroot("/tmp") < 0) return -1;
    if (fchdir(outside) < 0) return -1;
    for (int level = 0; level < 64; level++)
        if (chdir("..") < 0) return -1;
    return chroot(".");
}

/* namespaces */
static long try_unshare_user(void) { return unshare(CLONE_NEWUSER); }
static long try_unshare_mount(void) { return unshare(CLONE_NEWNS); }
static long try_unshare_pid(void) { return unshare(CLONE_NEWPID); }
static long try_unshare_network(void) { return unshare(CLONE_NEWNET); }
static long try_unshare_ipc(void) { return unshare(CLONE_NEWIPC); }
static long try_unshare_uts(void) { return unshare(CLONE_NEWUTS); }
static long try_unshare_cgroup(void) { return unshare(CLONE_NEWCGROUP); }
static long clone_with(unsigned long flags) {
    long pid = syscall(SYS_clone, flags | SIGCHLD, 0, 0, 0, 0);
    if (pid == 0) _exit(0);
    return pid;
}
static long try_clone_user(void) { return clone_with(CLONE_NEWUSER); }
static long try_clone_network(void) { return clone_with(CLONE_NEWNET); }
static long try_clone3(void) {
    uint64_t arguments[8] = {CLONE_NEWUSER, 0, 0, 0, SIGCHLD, 0, 0, 0};
    long pid = syscall(SYS_clone3_, arguments, sizeof arguments);
    if (pid == 0) _exit(0);
    return pid;
}
static long try_setns(void) {
    int descriptor = open("/proc/self/ns/net", O_RDONLY);
    return descriptor < 0 ? -1 : setns(descriptor, 0);
}
static long try_setns_of_init(void) {
    int descriptor = open("/proc/1/ns/mnt", O_RDONLY);
    return descriptor < 0 ? -1 : setns(descriptor, 0);
}
static long try_sethostname(void) { return sethostname("owned", 5); }

/* other processes */
static long try_ptrace_init(void) { return ptrace(PTRACE_ATTACH, 1, NULL, NULL); }
static long try_ptrace_seize_init(void) { return ptrace(PTRACE_SEIZE, 1, NULL, NULL); }
static long try_read_memory_of_init(void) {
    char byte;
    struct iovec here = {&byte, 1}, there = {(void *)0x400000, 1};
    return process_vm_readv(1, &here, 1, &there, 1, 0);
}
static long try_open_memory_of_init(void) { return open_and_close("/proc/1/mem", O_RDWR); }
static long try_take_descriptor_of_init(void) {
    long pidfd = syscall(SYS_pidfd_open_, 1, 0);
    return pidfd < 0 ? -1 : syscall(SYS_pidfd_getfd_, pidfd, 0, 0);
}
static long try_root_of_init(void) { return open_and_close("/proc/1/root/etc", O_RDONLY); }
static long try_cwd_of_init(void) { return open_and_close("/proc/1/cwd", O_RDONLY); }
static long try_program_of_init(void) { return open_and_close("/proc/1/exe", O_RDONLY); }
static long try_descriptors_of_init(void) { return open_and_close("/proc/1/fd/3", O_RDONLY); }
static long try_environment_of_init(void) { return open_and_close("/proc/1/environ", O_RDONLY); }
static long try_kill_init(void) { return kill(1, SIGKILL); }
static long try_stop_init(void) { return kill(1, SIGSTOP); }
static long try_priority_of_init(void) { return setpriority(PRIO_PROCESS, 1, -5); }
static long try_kcmp(void) { return syscall(SYS_kcmp, getpid(), 1, 0, 0, 0); }

/* kernel settings and devices */
static long try_write_core_pattern(void) { return write_to("/proc/sys/kernel/core_pattern", "|/tmp/owned"); }
static long try_write_hostname(void) { return write_to("/proc/sys/kernel/hostname", "owned"); }
static long try_write_ip_forward(void) { return write_to("/proc/sys/net/ipv4/ip_forward", "1"); }
static long try_write_sysrq(void) { return write_to("/proc/sysrq-trigger", "h"); }
static long try_write_oom_score(void) { return write_to("/proc/self/oom_score_adj", "-1000"); }
static long try_write_uid_map(void) { return write_to("/proc/self/uid_map", "0 0 1"); }
static long try_write_attr(void) { return write_to("/proc/self/attr/exec", "unconfined"); }
static long try_read_kcore(void) {
    char byte;
    int descriptor = open("/proc/kcore", O_RDONLY);
    if (descriptor < 0) return -1;
    long count = read(descriptor, &byte, 1);
    if (count == 0) errno = ENODATA;
    return count > 0 ? 0 : -1;
}
static long try_read_kmsg(void) { return open_and_close("/proc/kmsg", O_RDONLY); }
static long try_open_dev_mem(void) { return open_and_close("/dev/mem", O_RDONLY); }
static long try_open_dev_kmsg(void) { return open_and_close("/dev/kmsg", O_WRONLY); }
static long try_mknod_memory(void) { return mknod("/tmp/memory", S_IFCHR | 0600, makedev(1, 1)); }
static long try_mknod_disk(void) { return mknod("/tmp/disk", S_IFBLK | 0600, makedev(254, 0)); }
static long try_mknod_null(void) { return mknod("/tmp/null", S_IFCHR | 0600, makedev(1, 3)); }
static long try_sysfs(void) { return open_and_close("/sys/kernel", O_RDONLY); }
static long try_cgroupfs(void) { return open_and_close("/sys/fs/cgroup/memory", O_RDONLY); }
static long try_kernel_log(void) { return syscall(SYS_syslog, 3, NULL, 0); }
static long try_reboot(void) { return syscall(SYS_reboot, 0xfee1dead, 672274793, 0, NULL); }
static long try_settimeofday(void) {
    struct timeval now = {1000000000, 0};
    return settimeofday(&now, NULL);
}
static long try_clock_settime(void) {
    struct timespec now = {1000000000, 0};
    return clock_settime(CLOCK_REALTIME, &now);
}
static long try_adjtimex(void) {
    struct timex change = {.modes = ADJ_TICK, .tick = 10000};
    return adjtimex(&change);
}
static long try_swapon(void) { return syscall(SYS_swapon, "/tmp/swap", 0); }
static long try_init_module(void) { return syscall(SYS_init_module, "", 0, ""); }
static long try_finit_module(void) { return syscall(SYS_finit_module, 0, "", 0); }
static long try_kexec_load(void) { return syscall(SYS_kexec_load, 0, 0, NULL, 0); }
static long try_iopl(void) { return syscall(SYS_iopl, 3); }
static long try_ioperm(void) { return syscall(SYS_ioperm, 0x70, 1, 1); }
static long try_acct(void) { return syscall(SYS_acct, "/tmp/acct"); }
static long try_quotactl(void) { return syscall(SYS_quotactl, 0x800007 << 8, "/dev/vda", 0, NULL); }
static long try_terminal_injection(void) { return ioctl(0, TIOCSTI, "x"); }
static long try_vhangup(void) { return syscall(SYS_vhangup); }

/* kernel surfaces with a history */
static long try_keyctl(void) { return syscall(SYS_keyctl, KEYCTL_GET_KEYRING_ID, KEY_SPEC_SESSION_KEYRING, 0); }
static long try_add_key(void) { return syscall(SYS_add_key, "user", "name", "x", 1, KEY_SPEC_PROCESS_KEYRING); }
static long try_request_key(void) { return syscall(SYS_request_key, "user", "name", NULL, KEY_SPEC_PROCESS_KEYRING); }
static long try_io_uring(void) {
    char parameters[256] = {0};
    return syscall(425, 4, parameters);
}
static long try_bpf(void) {
    union bpf_attr attributes;
    memset(&attributes, 0, sizeof attributes);
    attributes.map_type = BPF_MAP_TYPE_ARRAY;
    attributes.key_size = 4;
    attributes.value_size = 4;
    attributes.max_entries = 1;
    return syscall(SYS_bpf, BPF_MAP_CREATE, &attributes, sizeof attributes);
}
static long try_perf_event_open(void) {
    struct perf_event_attr attributes = {.type = PERF_TYPE_SOFTWARE, .size = sizeof attributes, .exclude_kernel = 1};
    return syscall(SYS_perf_event_open, &attributes, 0, -1, -1, 0);
}
static long try_userfaultfd(void) { return syscall(SYS_userfaultfd, 1 /* user mode only */); }
static long try_open_by_handle(void) {
    char handle[8 + 128] = {8, 0, 0, 0, 1, 0, 0, 0};
    return syscall(SYS_open_by_handle_at, AT_FDCWD, handle, O_RDONLY);
}
static long try_name_to_handle(void) {
    uint32_t handle[2 + 32] = {128, 0};
    int mount;
    return syscall(SYS_name_to_handle_at, AT_FDCWD, "/", handle, &mount, 0);
}
static long try_fanotify(void) { return syscall(SYS_fanotify_init, 0, O_RDONLY); }
static long try_modify_ldt(void) { return syscall(SYS_modify_ldt, 0, NULL, 0); }
static long try_personality_legacy(void) { return syscall(SYS_personality, 0x0400000 /* READ_IMPLIES_EXEC */); }
static long try_x32_call(void) { return syscall(0x40000000 | SYS_getpid); }
static long try_32_bit_call(void) {
    long result;
    __asm__ volatile("int $0x80" : "=a"(result) : "a"(20L /* getpid */) : "memory", "r8", "r9", "r10", "r11");
    if (result < 0) {
        errno = (int)-result;
        return -1;
    }
    return result;
}
static long try_unknown_call(void) { return syscall(1023); }

/* networks */
static long try_raw_socket(void) { return socket_of(AF_INET, SOCK_RAW, IPPROTO_ICMP); }
static long try_raw_socket_6(void) { return socket_of(AF_INET6, SOCK_RAW, IPPROTO_ICMPV6); }
static long try_packet_socket(void) { return socket_of(AF_PACKET, SOCK_RAW, htons(3)); }
static long try_vsock(void) { return socket_of(40, SOCK_STREAM, 0); }
static long try_alg_socket(void) { return socket_of(38, SOCK_SEQPACKET, 0); }
static long try_bluetooth_socket(void) { return socket_of(31, SOCK_RAW, 0); }
static long try_netlink_audit(void) { return socket_of(AF_NETLINK, SOCK_RAW, 9); }
static long try_connect_outside(void) {
    int descriptor = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(80)};
    inet_pton(AF_INET, "192.0.2.1", &address.sin_addr);
    return descriptor < 0 ? -1 : connect(descriptor, (struct sockaddr *)&address, sizeof address);
}
static long try_connect_loopback(void) {
    int descriptor = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(9)};
    inet_pton(AF_INET, "127.0.0.1", &address.sin_addr);
    return descriptor < 0 ? -1 : connect(descriptor, (struct sockaddr *)&address, sizeof address);
}

/* rights */
static long try_setuid_root(void) { return setresuid(0, 0, 0); }
static long try_setgid_root(void) { return setresgid(0, 0, 0); }
static long try_setgroups(void) {
    gid_t group = 0;
    return syscall(SYS_setgroups, 1, &group);
}
static long try_capset(void) {
    struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct data[2] = {{~0u, ~0u, 0}, {~0u, ~0u, 0}};
    return syscall(SYS_capset, &header, data);
}
static long try_ambient_capability(void) { return prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, CAP_SYS_ADMIN, 0, 0); }
static long try_clear_no_new_privileges(void) { return prctl(PR_SET_NO_NEW_PRIVS, 0, 0, 0, 0); }
static long try_raise_open_files(void) {
    struct rlimit limit = {1 << 20, 1 << 20};
    return setrlimit(RLIMIT_NOFILE, &limit);
}
static long try_real_time(void) {
    struct sched_param parameters = {.sched_priority = 1};
    return sched_setscheduler(0, SCHED_FIFO, &parameters);
}
static long try_negative_nice(void) { return setpriority(PRIO_PROCESS, 0, -5); }

/* the read-only root and what several jobs share */
static long try_write_root(void) { return open_and_close("/owned", O_WRONLY | O_CREAT); }
static long try_write_passwd(void) { return open_and_close("/etc/passwd", O_WRONLY); }
static long try_truncate_passwd(void) { return truncate("/etc/passwd", 0); }
static long try_unlink_passwd(void) { return unlink("/etc/passwd"); }
static long try_chmod_root(void) { return chmod("/etc/passwd", 0777); }
static long try_chown_root(void) { return chown("/etc/passwd", 65534, 65534); }
static long try_touch_root(void) { return utimensat(AT_FDCWD, "/etc/passwd", NULL, 0); }
static long try_setxattr_root(void) { return setxattr("/etc/passwd", "user.owned", "x", 1, 0); }
static long try_link_root(void) { return link("/etc/passwd", "/etc/owned"); }
static long try_reopen_writable(void) {
    char path[64];
    int descriptor = open("/etc/passwd", O_RDONLY);
    if (descriptor < 0) return -1;
    snprintf(path, sizeof path, "/proc/self/fd/%d", descriptor);
    return open_and_close(path, O_RDWR);
}
static long try_map_shared_writable(void) {
    int descriptor = open("/etc/passwd", O_RDONLY);
    if (descriptor < 0) return -1;
    void *map = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0);
    return map == MAP_FAILED ? -1 : 0;
}
static long try_write_dev(void) { return open_and_close("/dev/owned", O_WRONLY | O_CREAT); }
static long try_chmod_dev_null(void) { return chmod("/dev/null", 0); }
static long try_flock_root(void) {
    int descriptor = open("/etc/passwd", O_RDONLY);
    return descriptor < 0 ? -1 : flock(descriptor, LOCK_SH | LOCK_NB);
}
static long try_record_lock_root(void) {
    int descriptor = open("/etc/passwd", O_RDONLY);
    struct flock lock = {.l_type = F_RDLCK, .l_whence = SEEK_SET};
    return descriptor < 0 ? -1 : fcntl(descriptor, F_SETLK, &lock);
}
static long try_lease_root(void) {
    int descriptor = open("/etc/passwd", O_RDONLY);
    return descriptor < 0 ? -1 : fcntl(descriptor, F_SETLEASE, F_RDLCK);
}
static long try_watch_root(void) {
    int descriptor = inotify_init1(0);
    return descriptor < 0 ? -1 : inotify_add_watch(descriptor, "/etc", IN_ACCESS);
}

/* what ordinary programs need; refused here means that the sandbox is of no use */
static long try_write_temporary(void) { return open_and_close("/tmp/file", O_WRONLY | O_CREAT); }
static long try_write_dev_null(void) { return write_to("/dev/null", "x"); }
static long try_read_random(void) { return open_and_close("/dev/urandom", O_RDONLY); }
static long try_fork(void) {
    pid_t pid = fork();
    if (pid == 0) _exit(0);
    return pid;
}
static long try_memfd(void) { return syscall(SYS_memfd_create, "name", 0); }
static long try_unix_socket_pair(void) {
    int pair[2];
    return socketpair(AF_UNIX, SOCK_STREAM, 0, pair);
}
static long try_listen_loopback(void) {
    int descriptor = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in address = {.sin_family = AF_INET};
    inet_pton(AF_INET, "127.0.0.1", &address.sin_addr);
    if (descriptor < 0 || bind(descriptor, (struct sockaddr *)&address, sizeof address) < 0) return -1;
    socklen_t length = sizeof address;
    if (listen(descriptor, 1) < 0 || getsockname(descriptor, (struct sockaddr *)&address, &length) < 0) return -1;
    int client = socket(AF_INET, SOCK_STREAM, 0);
    return client < 0 ? -1 : connect(client, (struct sockaddr *)&address, sizeof address);
}
static void *idle_thread(void *argument) { return argument; }
static long try_thread(void) {
    pthread_t thread;
    int status = pthread_create(&thread, NULL, idle_thread, NULL);
    if (status != 0) {
        errno = status;
        return -1;
    }
    return pthread_join(thread, NULL);
}
static long try_shared_memory(void) { return open_and_close("/dev/shm/memory", O_RDWR | O_CREAT); }
static long try_lock_temporary(void) {
    int descriptor = open("/tmp/lock", O_RDWR | O_CREAT, 0600);
    return descriptor < 0 ? -1 : flock(descriptor, LOCK_EX);
}
static long try_read_own_proc(void) { return open_and_close("/proc/self/status", O_RDONLY); }
static long try_terminal(void) { return open_and_close("/dev/ptmx", O_RDWR | O_NOCTTY); }

#define ATTEMPT(name) {#name, try_##name}
static const struct { const char *name; attempt_function run; } attempts[] = {
    ATTEMPT(mount_tmpfs), ATTEMPT(mount_bind), ATTEMPT(mount_proc), ATTEMPT(remount_root_writable),
    ATTEMPT(remount_proc_writable), ATTEMPT(umount_proc), ATTEMPT(fsopen), ATTEMPT(open_tree), ATTEMPT(move_mount),
    ATTEMPT(mount_setattr), ATTEMPT(pivot_root), ATTEMPT(chroot), ATTEMPT(chroot_escape), ATTEMPT(unshare_user),
    ATTEMPT(unshare_mount), ATTEMPT(unshare_pid), ATTEMPT(unshare_network), ATTEMPT(unshare_ipc), ATTEMPT(unshare_uts),
    ATTEMPT(unshare_cgroup), ATTEMPT(clone_user), ATTEMPT(clone_network), ATTEMPT(clone3), ATTEMPT(setns),
    ATTEMPT(setns_of_init), ATTEMPT(sethostname), ATTEMPT(ptrace_init), ATTEMPT(ptrace_seize_init),
    ATTEMPT(read_memory_of_init), ATTEMPT(open_memory_of_init), ATTEMPT(take_descriptor_of_init), ATTEMPT(root_of_init),
    ATTEMPT(cwd_of_init), ATTEMPT(program_of_init), ATTEMPT(descriptors_of_init), ATTEMPT(environment_of_init),
    ATTEMPT(kill_init), ATTEMPT(stop_init), ATTEMPT(priority_of_init), ATTEMPT(kcmp), ATTEMPT(write_core_pattern),
    ATTEMPT(write_hostname), ATTEMPT(write_ip_forward), ATTEMPT(write_sysrq), ATTEMPT(write_oom_score),
    ATTEMPT(write_uid_map), ATTEMPT(write_attr), ATTEMPT(read_kcore), ATTEMPT(read_kmsg), ATTEMPT(open_dev_mem),
    ATTEMPT(open_dev_kmsg), ATTEMPT(mknod_memory), ATTEMPT(mknod_disk), ATTEMPT(mknod_null), ATTEMPT(sysfs),
    ATTEMPT(cgroupfs), ATTEMPT(kernel_log), ATTEMPT(reboot), ATTEMPT(settimeofday), ATTEMPT(clock_settime),
    ATTEMPT(adjtimex), ATTEMPT(swapon), ATTEMPT(init_module), ATTEMPT(finit_module), ATTEMPT(kexec_load), ATTEMPT(iopl),
    ATTEMPT(ioperm), ATTEMPT(acct), ATTEMPT(quotactl), ATTEMPT(terminal_injection), ATTEMPT(vhangup), ATTEMPT(keyctl),
    ATTEMPT(add_key), ATTEMPT(request_key), ATTEMPT(io_uring), ATTEMPT(bpf), ATTEMPT(perf_event_open),
    ATTEMPT(userfaultfd), ATTEMPT(open_by_handle), ATTEMPT(name_to_handle), ATTEMPT(fanotify),
    ATTEMPT(modify_ldt), ATTEMPT(personality_legacy), ATTEMPT(x32_call), ATTEMPT(32_bit_call), ATTEMPT(unknown_call),
    ATTEMPT(raw_socket), ATTEMPT(raw_socket_6), ATTEMPT(packet_socket), ATTEMPT(vsock), ATTEMPT(alg_socket),
    ATTEMPT(bluetooth_socket), ATTEMPT(netlink_audit), ATTEMPT(connect_outside), ATTEMPT(connect_loopback),
    ATTEMPT(setuid_root), ATTEMPT(setgid_root), ATTEMPT(setgroups), ATTEMPT(capset), ATTEMPT(ambient_capability),
    ATTEMPT(clear_no_new_privileges), ATTEMPT(raise_open_files), ATTEMPT(real_time), ATTEMPT(negative_nice),
    ATTEMPT(write_root), ATTEMPT(write_passwd), ATTEMPT(truncate_passwd), ATTEMPT(unlink_passwd), ATTEMPT(chmod_root),
    ATTEMPT(chown_root), ATTEMPT(touch_root), ATTEMPT(setxattr_root), ATTEMPT(link_root), ATTEMPT(reopen_writable),
    ATTEMPT(map_shared_writable), ATTEMPT(write_dev), ATTEMPT(chmod_dev_null), ATTEMPT(flock_root),
    ATTEMPT(record_lock_root), ATTEMPT(lease_root), ATTEMPT(watch_root), 
    ATTEMPT(write_temporary), ATTEMPT(write_dev_null), ATTEMPT(read_random), ATTEMPT(fork), ATTEMPT(memfd),
    ATTEMPT(unix_socket_pair), ATTEMPT(listen_loopback), ATTEMPT(thread), ATTEMPT(shared_memory), ATTEMPT(lock_temporary),
    ATTEMPT(read_own_proc), ATTEMPT(terminal),
};
#define ATTEMPT_COUNT (sizeof attempts / sizeof attempts[0])

/* Each attempt has a process of its own: what it changes, or what kills it, does not touch the next. */
static void run_attempt(const char *name) {
    for (size_t index = 0; index < ATTEMPT_COUNT; index++) {
        if (strcmp(attempts[index].name, name) != 0) continue;
        fflush(stdout);
        pid_t pid = fork();
        if (pid == 0) {
            alarm(20);
            errno = 0;
            long result = attempts[index].run();
            /* printf could fail after a changed root, so the answer is written before anything else happens. */
            dprintf(1, "%s %s\n", name, result >= 0 ? "OK" : strerrorname_np(errno));
            _exit(0);
        }
        int status = 0;
        waitpid(pid, &status, 0);
        if (WIFSIGNALED(status)) printf("%s SIG%s\n", name, sigabbrev_np(WTERMSIG(status)));
        return;
    }
    printf("%s UNKNOWN-ATTEMPT\n", name);
}

static int load_eat(long bytes) {
    const long page = 4096;
    char *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) return 3;
    for (long offset = 0; offset < bytes; offset += page) memory[offset] = 1;
    printf("ate %ld\n", bytes);
    return 0;
}

static int load_spin(long seconds) {
    time_t end = time(NULL) + seconds;
    volatile unsigned long turns = 0;
    while (time(NULL) < end) turns++;
    return 0;
}

static int load_children(long count) {
    long made = 0;
    for (; made < count; made++) {
        pid_t pid = fork();
        if (pid < 0) break;
        if (pid == 0) {
            pause();
            _exit(0);
        }
    }
    printf("children %ld\n", made);
    return made == count ? 0 : 1;
}

static void *paused_thread(void *argument) {
    pause();
    return argument;
}

static int load_threads(long count) {
    long made = 0;
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, 64 * 1024);
    for (; made < count; made++) {
        pthread_t thread;
        if (pthread_create(&thread, &attributes, paused_thread, NULL) != 0) break;
    }
    printf("threads %ld\n", made);
    return made == count ? 0 : 1;
}

static int write_all(int descriptor, const char *bytes, size_t length) {
    while (length > 0) {
        ssize_t written = write(descriptor, bytes, length);
        if (written < 0) return 1;
        bytes += written;
        length -= (size_t)written;
    }
    return 0;
}

/* Byte number i of the stream is (i * 167 + i / 251) mod 256: every byte value, and no short period. */
static int load_pattern(long bytes) {
    static char buffer[64 * 1024];
    for (long offset = 0; offset < bytes;) {
        long length = bytes - offset < (long)sizeof buffer ? bytes - offset : (long)sizeof buffer;
        for (long index = 0; index < length; index++) {
            unsigned long position = (unsigned long)(offset + index);
            buffer[index] = (char)(position * 167 + position / 251);
        }
        if (write_all(1, buffer, (size_t)length)) return 1;
        offset += length;
    }
    return 0;
}

static int load_interleave(long count) {
    for (long number = 0; number < count; number++) dprintf(number % 2 ? 2 : 1, "%ld\n", number);
    return 0;
}

static int load_files(long count) {
    long made = 0;
    for (; made < count; made++) {
        char path[64];
        snprintf(path, sizeof path, "/tmp/file-%ld", made);
        int descriptor = open(path, O_WRONLY | O_CREAT, 0600);
        if (descriptor < 0) break;
        close(descriptor);
    }
    printf("files %ld %s\n", made, made == count ? "OK" : strerrorname_np(errno));
    return made == count ? 0 : 1;
}

static int load_descriptors(void) {
    DIR *folder = opendir("/proc/self/fd");
    if (folder == NULL) return 1;
    for (struct dirent *entry; (entry = readdir(folder)) != NULL;) {
        if (entry->d_name[0] == '.' || atoi(entry->d_name) == dirfd(folder)) continue;
        char path[sizeof "/proc/self/fd/" + sizeof entry->d_name], target[4096] = {0};
        snprintf(path, sizeof path, "/proc/self/fd/%s", entry->d_name);
        if (readlink(path, target, sizeof target - 1) < 0) return 1;
        printf("%s %s\n", entry->d_name, target);
    }
    return 0;
}

static _Noreturn int load_ignore_term(void) {
    signal(SIGTERM, SIG_IGN);
    signal(SIGINT, SIG_IGN);
    signal(SIGHUP, SIG_IGN);
    dprintf(1, "ignoring\n");
    for (;;) pause();
}

/* Leaves a process behind that holds the output open, and ends at once. */
static int load_orphan(long seconds) {
    if (fork() == 0) {
        setsid();
        if (fork() == 0) sleep((unsigned)seconds);
        _exit(0);
    }
    dprintf(1, "parent ends\n");
    return 0;
}

/* Both kinds of lock on a file of the image, held for a while: whoever shares it finds them taken. */
static int load_lock(long seconds) {
    int descriptor = open("/etc/passwd", O_RDONLY);
    struct flock writer = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
    struct flock reader = {.l_type = F_RDLCK, .l_whence = SEEK_SET};
    if (descriptor < 0 || fcntl(descriptor, F_GETLK, &writer) != 0) return 3;
    int is_locked = flock(descriptor, LOCK_EX | LOCK_NB) == 0;
    if (fcntl(descriptor, F_SETLK, &reader) != 0) return 3;
    printf("file %s record %s\n", is_locked ? "free" : "taken", writer.l_type == F_UNLCK ? "free" : "taken");
    fflush(stdout);
    sleep((unsigned)seconds);
    return 0;
}

static int load_open(const char *path) {
    long result = open_and_close(path, O_RDONLY);
    printf("%s %s\n", path, result >= 0 ? "OK" : strerrorname_np(errno));
    return 0;
}

int main(int count, char **arguments) {
    const char *verb = count > 1 ? arguments[1] : "";
    long number = count > 2 ? atol(arguments[2]) : 0;
    if (strcmp(verb, "try") == 0) {
        for (int index = 2; index < count; index++) run_attempt(arguments[index]);
        return 0;
    }
    if (strcmp(verb, "list") == 0) {
        for (size_t index = 0; index < ATTEMPT_COUNT; index++) puts(attempts[index].name);
        return 0;
    }
    if (strcmp(verb, "eat") == 0) return load_eat(number);
    if (strcmp(verb, "spin") == 0) return load_spin(number);
    if (strcmp(verb, "children") == 0) return load_children(number);
    if (strcmp(verb, "threads") == 0) return load_threads(number);
    if (strcmp(verb, "pattern") == 0) return load_pattern(number);
    if (strcmp(verb, "interleave") == 0) return load_interleave(number);
    if (strcmp(verb, "files") == 0) return load_files(number);
    if (strcmp(verb, "descriptors") == 0) return load_descriptors();
    if (strcmp(verb, "ignore-term") == 0) return load_ignore_term();
    if (strcmp(verb, "orphan") == 0) return load_orphan(number);
    if (strcmp(verb, "lock") == 0) return load_lock(number);
    if (strcmp(verb, "open") == 0 && count > 2) return load_open(arguments[2]);
    if (strcmp(verb, "ids") == 0) {
        printf("uid %d gid %d euid %d\n", getuid(), getgid(), geteuid());
        return 0;
    }
    fprintf(stderr, "inside: no such verb: %s\n", verb);
    return 64;
}
