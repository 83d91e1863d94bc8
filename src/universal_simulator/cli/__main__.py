from universal_simulator.cli import main

main()
