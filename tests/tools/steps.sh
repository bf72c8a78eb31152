# Steps of ./test: each is announced, timed, logged and counted.

# A hung test should say so while there is still time to read it.
step_limit=3600

# step NAME COMMAND...: a step that counts as one result.
step() {
    if run "$@"; then
        passed=$((passed + 1))
    else
        fail "$1"
        return 1
    fi
}

# cargo_tests ARGS...: `cargo test`; every test counts as one result.
cargo_tests() {
    local result=0 ok bad name
    run tests cargo test "$@" || result=1
    read -r ok bad < <(count_tests "$logs/tests.log")
    passed=$((passed + ok))
    failed=$((failed + bad))
    if ((bad)); then
        while read -r name; do
            failures+=("$name")
        done < <(sed -nE 's/^test (.*) \.\.\. FAILED$/\1/p' "$logs/tests.log")
    elif ((result)); then
        # It did not compile, or a test binary died before it could report.
        fail tests
    elif ((ok == 0)); then
        echo 'No test ran.'
        fail tests
    fi
}

count_tests() {
    awk '/^test result: / {
        for (i = 2; i <= NF; i++) {
            if ($i == "passed;") ok += $(i - 1)
            if ($i == "failed;") bad += $(i - 1)
        }
    } END { print ok + 0, bad + 0 }' "$1"
}

fail() {
    failed=$((failed + 1))
    failures+=("$1")
}

# run NAME COMMAND...: in the background, because bash handles no signal while
# it waits for a foreground command, and in a process group of its own, so that
# all it started can be stopped.
run() {
    local name=$1 log="$logs/${1// /-}.log" begin=$SECONDS result
    shift
    mkdir -p "$logs"
    echo "== $name"
    set -m
    { "$@" 2>&1 | tee "$log"; } </dev/null &
    step_group=$!
    watch "$log" </dev/null &
    watchdog=$!
    set +m
    wait "$step_group"
    result=$?
    step_group=
    stop_watchdog
    if ((result)); then
        echo "   FAILED after $((SECONDS - begin)) s, see $log"
    else
        echo "   ok, $((SECONDS - begin)) s"
    fi
    return "$result"
}

# A zombie is not alive: whoever started ./test may not have asked for its end yet.
alive() {
    kill -0 "$1" 2>/dev/null && ! grep -qs ') Z ' "/proc/$1/stat"
}

# Ends the step when it takes too long, or when ./test itself was killed outright.
watch() {
    local end=$((SECONDS + step_limit))
    while alive $$; do
        if ((SECONDS >= end)); then
            echo "   stopped: not done after $step_limit s" | tee -a "$1"
            break
        fi
        sleep 1
    done
    kill -TERM -- "-$step_group"
}

stop_watchdog() {
    kill -KILL -- "-$watchdog" 2>/dev/null
    wait "$watchdog" 2>/dev/null
}

stop_step() {
    local waited
    if [[ -z $step_group ]]; then
        return
    fi
    stop_watchdog
    kill -TERM -- "-$step_group" 2>/dev/null
    for ((waited = 0; waited < 50; waited++)); do
        kill -0 -- "-$step_group" 2>/dev/null || break
        sleep 0.1
    done
    kill -KILL -- "-$step_group" 2>/dev/null
    step_group=
}

# `wait` returns at a signal at once, `sleep` in the foreground does not.
wait_for_signal() {
    while true; do
        sleep 1 &
        wait $!
    done
}

summary() {
    local name
    echo
    for name in "${failures[@]+"${failures[@]}"}"; do
        echo "failed: $name"
    done
    echo "$passed passed, $failed failed"
    ((failed == 0))
}
