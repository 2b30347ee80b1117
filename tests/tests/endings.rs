//! trivial
#[test]
fn boots() {
    let c = std::fs::read_to_string("/sys/fs/cgroup/cgroup.controllers").unwrap();
    println!("{c}");
}
