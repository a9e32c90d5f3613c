from s2v_tasks.cli import main

main()
