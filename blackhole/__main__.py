"""python -m blackhole"""

from blackhole.main import main

if __name__ == "__main__":
    raise SystemExit(main())
