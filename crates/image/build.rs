fn main() {
    // The recipe is embedded; cargo notices files changed in it by itself, added ones only this way.
    println!("cargo::rerun-if-changed=../../images/desktop");
}
