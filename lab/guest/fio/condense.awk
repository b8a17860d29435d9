# From what fio prints to lines for the console: FIO and JSON for each of fio's reports, summed over
# its jobs, and FIO-SAID for whatever else it says. Times are seconds, by the guest's clock that
# counts what a suspend took. Each line is one write: the console is also the writer's.

function report(code,    line, up) {
    getline line < "/proc/uptime"
    close("/proc/uptime")
    split(line, up, " ")
    print "FIO {" sprintf("\"pass\": %d, \"uptime\": %s, \"code\": %s, \"error\": %d, ", \
            pass, up[1], code, error) \
        sprintf("\"reads\": %.0f, \"read_bytes\": %.0f, \"read_seconds\": %.6f, ", \
            ios["read"], bytes["read"], seconds["read"]) \
        sprintf("\"writes\": %.0f, \"written_bytes\": %.0f, \"write_seconds\": %.6f}", \
            ios["write"], bytes["write"], seconds["write"])
    fflush()
}

function forget() {
    error = 0
    kind = part = ""
    split("", ios)
    split("", bytes)
    split("", seconds)
}

/^PASS / { pass = $2; said = 0; forget(); next }
/^CODE / { report($2); next }
/^\{/ { forget(); next }
/^\}/ { report("null"); next }
/^[^ ]/ { if (said++ < 10) { print "FIO-SAID " substr($0, 1, 200); fflush() } next }

/^      "(read|write|trim|sync)" : \{/ { kind = $1; gsub(/"/, "", kind); next }
/^      "error" : / { if ($3 + 0 > error) error = $3 + 0; next }
/^        "[a-z_]+" : \{/ { part = $1; next }
/^        \}/ { part = ""; next }
/^        "io_bytes" : / { bytes[kind] += $3; next }
/^        "total_ios" : / { ios[kind] += $3; next }
part == "\"lat_ns\"" && /^          "mean" : / { mean = $3; next }
part == "\"lat_ns\"" && /^          "N" : / { seconds[kind] += mean * $3 / 1e9; next }
