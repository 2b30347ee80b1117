//! The launcher as a program of its own: what it forks is small, and what must be trusted with privileges is little.

fn main() {
    ampoule_engine::sandbox::launcher::main();
}
