//! A program that shares its cores with libtorch's threads keeps its arguments. It has no test harness, because it is
//! replaced by itself.

fn main() {
    if std::env::args().nth(1).as_deref() != Some("inner") {
        let program = std::env::current_exe().unwrap();
        let mut inner = std::process::Command::new(program);
        let inner = inner
            .args(["inner", "--an option"])
            .env_remove("OMP_WAIT_POLICY");
        assert!(
            inner
                .env_remove("GOMP_SPINCOUNT")
                .status()
                .unwrap()
                .success()
        );
        println!("1 passed, 0 failed");
        return;
    }
    abkd_host::share_cores_with_libtorch();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    assert_eq!(arguments, ["inner", "--an option"]);
    let set = std::env::var("GOMP_SPINCOUNT").is_ok();
    assert_eq!(set, cfg!(all(feature = "tch", target_os = "linux")));
}
