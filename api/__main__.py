"""python -m genbo"""

from genbo.cli.main import main

if __name__ == "__main__":
    main()
