#!/usr/bin/env bash
# A part of the tests in a process of its own, for `make test`: scripts/test_part.sh PYTHON FOLDER_OR_FILE...
# Begun anew, once, where the process was lost, which no test explains (see docs/log.md); a test that fails is final.
python=$1
shift
for attempt in 1 2; do
    output=$("$python" -m pytest -q -p no:cacheprovider "$@" 2>&1) && status=0 || status=$?
    echo "$output" | tail -n $((status == 0 ? 1 : 200))
    [ "$status" -eq 5 ] && exit 0       # a folder without tests
    [ "$status" -le 4 ] && exit "$status"
    echo "$*: the process was lost (status $status)"
done
exit 1
