//! The names that profiles use for argument values and errnos: the kernel's own, so that the data reads like its
//! manual.

use libc::*;

/// The value of a named argument constant.
pub(super) fn argument(name: &str) -> Option<u32> {
    ARGUMENTS.iter().find(|(known, _)| *known == name).map(|(_, value)| *value)
}

/// The number of a named errno.
pub(super) fn errno(name: &str) -> Option<u16> {
    ERRNOS.iter().find(|(known, _)| *known == name).map(|(_, value)| *value as u16)
}

const ARGUMENTS: [(&str, u32); 44] = [
    ("ADDR_NO_RANDOMIZE", ADDR_NO_RANDOMIZE as u32),
    ("AF_INET", AF_INET as u32),
    ("AF_INET6", AF_INET6 as u32),
    ("AF_NETLINK", AF_NETLINK as u32),
    ("AF_UNIX", AF_UNIX as u32),
    ("CLONE_NEWCGROUP", CLONE_NEWCGROUP as u32),
    ("CLONE_NEWIPC", CLONE_NEWIPC as u32),
    ("CLONE_NEWNET", CLONE_NEWNET as u32),
    ("CLONE_NEWNS", CLONE_NEWNS as u32),
    ("CLONE_NEWPID", CLONE_NEWPID as u32),
    ("CLONE_NEWUSER", CLONE_NEWUSER as u32),
    ("CLONE_NEWUTS", CLONE_NEWUTS as u32),
    ("F_GETDELEG", 1024 + 15), // not in libc yet
    ("F_GETLEASE", F_GETLEASE as u32),
    ("F_NOTIFY", F_NOTIFY as u32),
    ("F_SETDELEG", 1024 + 16), // not in libc yet
    ("F_SETLEASE", F_SETLEASE as u32),
    ("IPPROTO_IP", IPPROTO_IP as u32),
    ("IPPROTO_TCP", IPPROTO_TCP as u32),
    ("IPPROTO_UDP", IPPROTO_UDP as u32),
    ("MADV_MERGEABLE", MADV_MERGEABLE as u32),
    ("MAP_HUGETLB", MAP_HUGETLB as u32),
    ("MFD_HUGETLB", MFD_HUGETLB),
    ("NETLINK_ROUTE", NETLINK_ROUTE as u32),
    ("PERSONALITY_QUERY", 0xffff_ffff), // personality(2) gives this value no name
    ("PER_LINUX", 0),                   // linux/personality.h, as the next
    ("PER_LINUX32", 8),
    ("PR_SCHED_CORE", PR_SCHED_CORE as u32),
    ("PR_SET_MEMORY_MERGE", 67), // not in libc yet
    ("PR_SET_MM", PR_SET_MM as u32),
    ("RWF_NOWAIT", RWF_NOWAIT as u32),
    ("SHM_HUGETLB", SHM_HUGETLB as u32),
    ("SOCK_DGRAM", SOCK_DGRAM as u32),
    ("SOCK_STREAM", SOCK_STREAM as u32),
    ("SOCK_TYPE_MASK", 0xf), // include/linux/net.h: the rest are flags
    ("S_IFCHR", S_IFCHR),
    ("S_IFIFO", S_IFIFO),
    ("S_IFMT", S_IFMT),
    ("S_IFREG", S_IFREG),
    ("S_IFSOCK", S_IFSOCK),
    ("TIOCLINUX", TIOCLINUX as u32),
    ("TIOCSETD", TIOCSETD as u32),
    ("TIOCSTI", TIOCSTI as u32),
    ("UNAME26", UNAME26 as u32),
];

const ERRNOS: [(&str, c_int); 7] = [
    ("EAFNOSUPPORT", EAFNOSUPPORT),
    ("EINVAL", EINVAL),
    ("ENOMEM", ENOMEM),
    ("ENOSYS", ENOSYS),
    ("EOPNOTSUPP", EOPNOTSUPP),
    ("EPERM", EPERM),
    ("EPROTONOSUPPORT", EPROTONOSUPPORT),
];
