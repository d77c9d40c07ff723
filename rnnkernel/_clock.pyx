"""How many profiles are in use, for whoever would ask Python for the current call at every one."""


def count_profiles(int change):
    global profiles_in_use
    profiles_in_use += change
