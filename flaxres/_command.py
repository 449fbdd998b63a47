"""A mark of processes that run one of flaxres' own commands.

A spawned process imports the main module again. A script of somebody's own may lack
`if __name__ == "__main__":`, so only the commands start processes without being asked.
"""

running = False
